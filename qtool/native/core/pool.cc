// A job is cut in a range of chunks for each thread, so that a thread meets in every operator of a plan the part of the
// picture that is in its cache already; who has done his own takes what is left of the others'. A range is one word, a
// ticket: the number of the job in the upper half and the chunks not yet taken in the lower. Taking a chunk is one
// compare-and-swap, so a thread that wakes late can never take a chunk of another job than it means, and nobody waits for
// a thread that has taken none. That also makes a forked child safe: its caller takes all chunks itself.
#include "core/pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace qtool {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds kSpin(75);

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

void futex_wait(std::atomic<uint32_t>* word, uint32_t seen) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void futex_wake_all(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

int allowed_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return CPU_COUNT(&set);
}

// Calls until(): true ends the wait. False after `limit`.
template <class F>
bool spin(std::chrono::microseconds limit, const F& until) {
  const Clock::time_point end = Clock::now() + limit;
  do {
    for (int i = 0; i < 32; i++) {
      if (until()) return true;
      relax();
    }
  } while (Clock::now() < end);
  return false;
}

// Signals are for the threads of the program, not for the pool's.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

// Moves the calling thread to a CPU that is not in `taken`; it stays where there is none that it may use. The kernel
// likes to wake a thread on the CPU of the one that wakes it, and where other programs run it may leave both there for
// many milliseconds, each waiting for the other. The affinity is as before afterwards, or as it has been set meanwhile:
// it is the user's to choose.
void leave_cpus(const cpu_set_t& taken) {
  cpu_set_t allowed, free, now;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  CPU_AND(&free, &allowed, &taken);
  CPU_XOR(&free, &allowed, &free);
  if (CPU_COUNT(&free) == 0 || sched_setaffinity(0, sizeof(free), &free) != 0) return;
  if (sched_getaffinity(0, sizeof(now), &now) != 0 || !CPU_EQUAL(&now, &free)) return;
  sched_setaffinity(0, sizeof(allowed), &allowed);
}

struct alignas(64) Ticket {
  std::atomic<uint64_t> word{0};
};

}  // namespace

struct ThreadPool::State {
  int threads;
  pid_t process = getpid();
  std::chrono::microseconds spin_time;
  std::vector<std::thread> workers;
  std::vector<std::atomic<int>> cpus;  // where each thread was last seen, -1 for nowhere
  std::vector<Ticket> tickets;         // a range for each thread

  std::atomic<bool> busy{false};
  const void* data = nullptr;  // the job: written before the tickets, read by those who have a chunk of it
  Body body = nullptr;
  uint32_t chunks = 0;
  alignas(64) std::atomic<uint32_t> done{0};
  alignas(64) std::atomic<uint32_t> generation{0};  // the futex word: changes with each job, and to stop
  std::atomic<int> sleepers{0};
  std::atomic<bool> stopping{false};

  // Where the range of a thread begins.
  uint32_t first_of(int thread) const { return static_cast<uint32_t>(uint64_t{chunks} * thread / threads); }

  void publish(uint32_t number) {
    for (int i = 0; i < threads; i++) {
      const uint32_t count = first_of(i + 1) - first_of(i);
      tickets[i].word.store((uint64_t{number} << 32) | count, std::memory_order_release);
    }
    generation.store(number);
  }

  // Runs chunks of the job of `number` until none is left: the thread's own range first.
  void work(uint32_t number, int thread) {
    uint32_t count = 0;
    for (int i = 0; i < threads; i++) count += work_range(number, (thread + i) % threads, thread);
    if (count > 0) done.fetch_add(count, std::memory_order_release);
  }

  // How many chunks it ran.
  uint32_t work_range(uint32_t number, int range, int thread) {
    std::atomic<uint64_t>& ticket = tickets[range].word;
    uint32_t count = 0;
    uint64_t seen = ticket.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(seen >> 32) == number && static_cast<uint32_t>(seen) != 0) {
      if (!ticket.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel)) continue;
      body(data, first_of(range + 1) - static_cast<uint32_t>(seen), thread);
      count++;
      seen = ticket.load(std::memory_order_acquire);
    }
    return count;
  }

  // With fewer CPUs than threads whoever spins keeps another from working, and nobody has a CPU for itself.
  explicit State(int count)
      : threads(count), spin_time(count <= allowed_cpus() ? kSpin : std::chrono::microseconds(0)), cpus(count),
        tickets(count) {
    for (std::atomic<int>& cpu : cpus) cpu.store(-1, std::memory_order_relaxed);
  }

  // Takes a CPU that no other thread is on; of two on the same the later one goes.
  void settle(int thread) {
    const int here = sched_getcpu();
    bool shared = false;
    cpu_set_t taken;
    CPU_ZERO(&taken);
    for (int i = 0; i < threads; i++) {
      const int cpu = cpus[i].load(std::memory_order_relaxed);
      if (i == thread || cpu < 0) continue;
      CPU_SET(cpu, &taken);
      shared = shared || (cpu == here && i < thread);
    }
    if (shared) leave_cpus(taken);
    note_cpu(thread, shared ? sched_getcpu() : here);
  }

  void note_cpu(int thread, int cpu) {  // writes only what changes: all threads read that cache line
    if (cpus[thread].load(std::memory_order_relaxed) != cpu) cpus[thread].store(cpu, std::memory_order_relaxed);
  }

  void serve(int thread) {
    uint32_t seen = 0;
    for (;;) {
      const auto changed = [&] { return generation.load(std::memory_order_acquire) != seen; };
      if (!spin(spin_time, changed)) {
        sleepers.fetch_add(1);
        while (generation.load() == seen) futex_wait(&generation, seen);
        sleepers.fetch_sub(1);
      }
      if (stopping.load()) return;
      seen = generation.load(std::memory_order_acquire);
      if (spin_time.count() > 0) settle(thread);
      work(seen, thread);
    }
  }

  void wake() {
    if (sleepers.load() > 0) futex_wake_all(&generation);
  }

  void stop() {
    stopping.store(true);
    generation.fetch_add(1);
    futex_wake_all(&generation);
    if (process != getpid()) {  // a forked child does not have them: there is nothing to join and no way to let go
      new std::vector<std::thread>(std::move(workers));
      return;
    }
    for (std::thread& worker : workers) worker.join();
  }
};

ThreadPool::ThreadPool(int threads) : state_(new State(threads)) {
  const BlockedSignals blocked;
  try {
    for (int i = 1; i < threads; i++) state_->workers.emplace_back([this, i] { state_->serve(i); });
  } catch (...) {
    state_->stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { state_->stop(); }

int ThreadPool::threads() const { return state_->threads; }

void ThreadPool::run(int64_t chunks, Body body, const void* data) {
  State& s = *state_;
  // Alone: for work that cannot be shared, and where the pool is at work for another plan.
  if (s.threads == 1 || chunks <= 1 || chunks > INT_MAX || s.busy.exchange(true, std::memory_order_acquire)) {
    for (int64_t chunk = 0; chunk < chunks; chunk++) body(data, chunk, 0);
    return;
  }
  s.body = body;
  s.data = data;
  s.chunks = static_cast<uint32_t>(chunks);
  s.done.store(0, std::memory_order_relaxed);
  s.note_cpu(0, sched_getcpu());
  const uint32_t number = s.generation.load(std::memory_order_relaxed) + 1;
  s.publish(number);
  s.wake();
  s.work(number, 0);
  const auto finished = [&] { return s.done.load(std::memory_order_acquire) == s.chunks; };
  while (!spin(s.spin_time, finished)) sched_yield();
  s.busy.store(false, std::memory_order_release);
}

std::shared_ptr<ThreadPool> shared_pool(int threads) {
  static std::mutex mutex;
  static std::map<std::pair<pid_t, int>, std::weak_ptr<ThreadPool>> pools;
  const std::lock_guard<std::mutex> lock(mutex);
  std::weak_ptr<ThreadPool>& known = pools[{getpid(), threads}];
  std::shared_ptr<ThreadPool> pool = known.lock();
  if (pool == nullptr) known = pool = std::make_shared<ThreadPool>(threads);
  return pool;
}

}  // namespace qtool
