// A pool of threads that stay: spin for a while, then sleep on a futex. Results never depend on the thread count,
// because work is cut in chunks that do not depend on it.
#pragma once

#include <cstdint>
#include <memory>

namespace qtool {

class ThreadPool {
 public:
  // `threads` counts the caller: 1 makes no thread at all. Threads keep the affinity of the process.
  // std::system_error where the system gives no more threads.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  int threads() const;

  // Calls body(data, chunk, thread) for every chunk in 0..chunks-1, `thread` in 0..threads-1; returns when all are done.
  // Thread i begins with the i-th part of the chunks and goes on with what others have left: neighbouring chunks should be
  // neighbours in memory, and chunks of all operators in the same order. `body` must not throw. Where the pool is already
  // at work (for another plan, or this is a call from inside a body) or its threads are gone (in a forked child), the
  // caller does it all.
  using Body = void (*)(const void* data, int64_t chunk, int thread);
  void run(int64_t chunks, Body body, const void* data);

  template <class F>
  void parallel(int64_t chunks, const F& f) {  // f(chunk, thread)
    run(chunks, [](const void* data, int64_t chunk, int thread) { (*static_cast<const F*>(data))(chunk, thread); }, &f);
  }

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The process's pool of that many threads, shared by all plans that have it.
std::shared_ptr<ThreadPool> shared_pool(int threads);

}  // namespace qtool
