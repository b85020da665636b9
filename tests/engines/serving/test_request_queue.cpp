#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <set>
#include <thread>
#include <vector>

#include "request_queue.hpp"

using examples::Answer;
using examples::Clock;
using examples::ImageRequest;
using examples::RequestQueue;
using Offer = RequestQueue::Offer;
using namespace std::chrono_literals;

namespace {

Offer offer(RequestQueue& queue, float value) {
  ImageRequest request;
  request.image = {value};
  return queue.offer(request);
}

std::vector<float> values(const std::vector<ImageRequest>& batch) {
  std::vector<float> found;
  for (const ImageRequest& request : batch) found.push_back(request.image.at(0));
  return found;
}

}  // namespace

TEST_CASE("a full batch goes at once, the oldest first") {
  RequestQueue queue(10, 2, 1h);
  for (const float value : {1.0F, 2.0F, 3.0F, 4.0F}) REQUIRE(offer(queue, value) == Offer::kAccepted);
  CHECK(queue.size() == 4);
  CHECK(values(queue.take()) == std::vector<float>{1, 2});
  CHECK(values(queue.take()) == std::vector<float>{3, 4});
  CHECK(queue.size() == 0);
}

TEST_CASE("a part of a batch waits for its delay, counted from the oldest") {
  RequestQueue queue(10, 4, 60ms);
  REQUIRE(offer(queue, 1) == Offer::kAccepted);
  const Clock::time_point start = Clock::now();
  std::this_thread::sleep_for(20ms);
  REQUIRE(offer(queue, 2) == Offer::kAccepted);
  CHECK(values(queue.take()) == std::vector<float>{1, 2});
  CHECK(Clock::now() - start >= 55ms);
}

TEST_CASE("without a delay a lone request goes at once") {
  RequestQueue queue(10, 4, 0ms);
  REQUIRE(offer(queue, 1) == Offer::kAccepted);
  CHECK(values(queue.take()) == std::vector<float>{1});
}

TEST_CASE("a worker that waits is woken by the first request, and by a batch that fills") {
  RequestQueue queue(10, 2, 1h);
  std::vector<float> taken;
  std::thread worker([&] { taken = values(queue.take()); });
  std::this_thread::sleep_for(10ms);
  offer(queue, 1);
  std::this_thread::sleep_for(10ms);
  offer(queue, 2);
  worker.join();
  CHECK(taken == std::vector<float>{1, 2});
}

TEST_CASE("a full queue refuses and leaves the request to its owner") {
  RequestQueue queue(2, 8, 1h);
  offer(queue, 1);
  offer(queue, 2);
  ImageRequest third;
  third.image = {3};
  CHECK(queue.offer(third) == Offer::kFull);
  CHECK(third.image == std::vector<float>{3});
  queue.close();
  CHECK(values(queue.take()) == std::vector<float>{1, 2});
}

TEST_CASE("a closed queue refuses, gives out what it has without delay, and ends its workers") {
  RequestQueue queue(10, 4, 1h);
  offer(queue, 1);
  std::atomic<int> ended{0};
  std::vector<std::thread> workers;
  std::atomic<int> taken{0};
  for (int i = 0; i < 3; ++i) {
    workers.emplace_back([&] {
      for (auto batch = queue.take(); !batch.empty(); batch = queue.take()) taken += static_cast<int>(batch.size());
      ++ended;
    });
  }
  std::this_thread::sleep_for(10ms);
  queue.close();
  for (std::thread& worker : workers) worker.join();
  CHECK(taken == 1);
  CHECK(ended == 3);
  CHECK(offer(queue, 2) == Offer::kClosed);
}

TEST_CASE("every request of many threads is answered once, or was refused") {
  constexpr int kThreads = 8, kEach = 500;
  RequestQueue queue(16, 4, 200us);
  std::atomic<int> answered{0}, refused{0}, wrong{0};
  std::vector<std::thread> workers, callers;
  for (int i = 0; i < 3; ++i) {
    workers.emplace_back([&] {
      for (auto batch = queue.take(); !batch.empty(); batch = queue.take()) {
        for (ImageRequest& request : batch) {
          Answer answer;
          answer.outputs = request.image;
          answer.batch = batch.size();
          request.answer.set_value(answer);
        }
      }
    });
  }
  for (int t = 0; t < kThreads; ++t) {
    callers.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        ImageRequest request;
        const auto value = static_cast<float>(t * kEach + i);
        request.image = {value};
        std::future<Answer> answer = request.answer.get_future();
        if (queue.offer(request) != Offer::kAccepted) {
          ++refused;
          continue;
        }
        const Answer got = answer.get();
        ++answered;
        if (got.outputs != std::vector<float>{value} || got.batch < 1 || got.batch > 4) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  queue.close();
  for (std::thread& worker : workers) worker.join();
  CHECK(answered + refused == kThreads * kEach);
  CHECK(answered > 0);
  CHECK(wrong == 0);
}
