#include "request_queue.hpp"

#include <algorithm>
#include <utility>

namespace examples {

RequestQueue::RequestQueue(std::size_t capacity, std::size_t max_batch, Clock::duration max_delay)
    : capacity_(capacity), max_batch_(max_batch), max_delay_(max_delay) {}

RequestQueue::Offer RequestQueue::offer(ImageRequest& request) {
  const std::lock_guard lock(mutex_);
  if (closed_) return Offer::kClosed;
  if (waiting_.size() >= capacity_) return Offer::kFull;
  request.offered = Clock::now();
  waiting_.push_back(std::move(request));
  // Those between need no worker of their own: the first one's times them.
  if (waiting_.size() == 1 || waiting_.size() >= max_batch_) changed_.notify_one();
  return Offer::kAccepted;
}

std::vector<ImageRequest> RequestQueue::take() {
  std::unique_lock lock(mutex_);
  while (!closed_ && waiting_.size() < max_batch_) {
    if (waiting_.empty()) {
      changed_.wait(lock);
      continue;
    }
    const Clock::time_point due = waiting_.front().offered + max_delay_;
    if (Clock::now() >= due) break;
    changed_.wait_until(lock, due);
  }
  std::vector<ImageRequest> batch;
  while (!waiting_.empty() && batch.size() < max_batch_) {
    batch.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  return batch;
}

void RequestQueue::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

std::size_t RequestQueue::size() const {
  const std::lock_guard lock(mutex_);
  return waiting_.size();
}

}  // namespace examples
