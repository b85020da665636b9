// Single images of many connections, taken in batches.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <future>
#include <mutex>
#include <vector>

namespace examples {

using Clock = std::chrono::steady_clock;

// What a worker made of one image.
struct Answer {
  std::vector<float> outputs;
  std::vector<std::int64_t> options;  // [T]
  std::int64_t macs = 0;
  double queue_ms = 0, run_ms = 0;
  std::size_t batch = 0;
};

// One image, [C, H, W], and where its answer goes.
struct ImageRequest {
  std::vector<float> image;
  float penalty = 0;
  std::promise<Answer> answer{};
  Clock::time_point offered{};
};

// A bounded queue. A free worker takes the oldest `max_batch` once as many wait, or the oldest has waited `max_delay`,
// or the queue is closed. Safe in many threads.
class RequestQueue {
 public:
  enum class Offer { kAccepted, kFull, kClosed };

  RequestQueue(std::size_t capacity, std::size_t max_batch, Clock::duration max_delay);

  // Moves from `request` only where it is accepted.
  Offer offer(ImageRequest& request);
  // Waits for a batch; empty once the queue is closed and all was taken.
  std::vector<ImageRequest> take();
  // Refuses new requests; those accepted are still taken, without delay.
  void close();
  std::size_t size() const;

 private:
  const std::size_t capacity_, max_batch_;
  const Clock::duration max_delay_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<ImageRequest> waiting_;
  bool closed_ = false;
};

}  // namespace examples
