// Threads that share the items of one call. Which thread computes an item changes nothing in its result.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace sagittal {

class Pool {
 public:
  using Body = std::function<void(int64_t)>;

  // Call body(0) to body(count - 1) on at most `threads` threads, this one among them.
  static void run(int threads, int64_t count, const Body& body) {
    static std::mutex busy;
    static std::unique_ptr<Pool> pool;
    std::unique_lock lock(busy, std::try_to_lock);
    if (threads <= 1 || count <= 1 || !lock.owns_lock()) {  // or others are at work: do it alone
      for (int64_t i = 0; i < count; ++i) body(i);
      return;
    }
    if (pool && pool->owner_ != getpid()) (void)pool.release();  // a fork has left its threads behind
    if (!pool) pool.reset(new Pool);
    pool->work(int(std::min<int64_t>(threads, count)) - 1, count, body);
  }

  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      ends_ = true;
    }
    wake_.notify_all();
    if (owner_ == getpid())
      for (std::thread& thread : threads_) thread.join();
    else
      for (std::thread& thread : threads_) thread.detach();
  }

 private:
  void work(int helpers, int64_t count, const Body& body) {
    while (int(threads_.size()) < helpers) threads_.emplace_back([this, n = int(threads_.size())] { wait(n); });
    {
      std::lock_guard lock(mutex_);
      body_ = &body, count_ = count, helpers_ = working_ = helpers, next_ = 0, ++call_;
    }
    wake_.notify_all();
    take(body, count);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return working_ == 0; });
  }

  void take(const Body& body, int64_t count) {
    for (int64_t i; (i = next_.fetch_add(1)) < count;) body(i);
  }

  void wait(int number) {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return ends_ || (call_ != seen && number < helpers_); });
      if (ends_) return;
      seen = call_;
      const Body& body = *body_;
      const int64_t count = count_;
      lock.unlock();
      take(body, count);
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  const pid_t owner_ = getpid();
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const Body* body_ = nullptr;
  int64_t count_ = 0;
  int helpers_ = 0, working_ = 0;
  uint64_t call_ = 0;
  bool ends_ = false;
  std::atomic<int64_t> next_{0};
};

}  // namespace sagittal
