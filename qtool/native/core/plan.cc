#include "core/plan.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <string>

#include "core/cpu.h"

namespace qtool {

#define QT_FAMILY(kind, family)                                           \
  std::unique_ptr<Op> make_##family(const qt_op& op, const MakeContext&); \
  void list_##family(std::vector<KernelInfo>* list);
#include "core/families.inc"
#undef QT_FAMILY

namespace {

#define QT_FAMILY(kind, family) {kind, #family, make_##family, list_##family},
const Family kFamilies[] = {
#include "core/families.inc"
    {-1, nullptr, nullptr, nullptr},
};
#undef QT_FAMILY

constexpr int64_t kMaxArena = int64_t{1} << 42, kMaxScratch = int64_t{1} << 34;
constexpr int kMaxBuffers = 1 << 24, kMaxOps = 1 << 22, kMaxThreads = 1024, kMaxPieces = 1 << 24;

const qt_plan_desc& checked(const qt_plan_desc& desc) {
  require(desc.abi == QT_ABI, "the description is of another version of the library");
  require(desc.isa >= 0 && desc.isa < QT_ISA_COUNT, "there is no such instruction set");
  if (!cpu_supports(desc.isa)) throw UnsupportedPlan(std::string("this CPU does not have ") + isa_name(desc.isa));
  require(desc.threads >= 1 && desc.threads <= kMaxThreads, "the number of threads is not in 1..1024");
  require(desc.buffer_count >= 0 && desc.buffer_count <= kMaxBuffers, "the number of buffers is out of range");
  require(desc.op_count >= 0 && desc.op_count <= kMaxOps, "the number of operators is out of range");
  require(desc.buffer_count == 0 || desc.buffers != nullptr, "there are no buffers");
  require(desc.op_count == 0 || desc.ops != nullptr, "there are no operators");
  require(desc.arena_bytes >= 0 && desc.arena_bytes <= kMaxArena, "the size of the arena is out of range");
  require(desc.pieces >= 1 && desc.pieces <= kMaxPieces, "the number of pieces is out of range");
  require(desc.piece_ops >= 0 && desc.piece_ops <= desc.op_count, "the number of operators of a piece is out of range");
  return desc;
}

void check_buffer(const qt_buffer& buffer, int64_t arena_bytes) {
  require(buffer.bytes >= 0, "its size is negative");
  require(buffer.piece_bytes >= 0 && buffer.piece_bytes <= buffer.bytes, "its pieces are not within it");
  if (buffer.kind == QT_BUFFER_EXTERNAL) return;
  require(buffer.kind == QT_BUFFER_ARENA, "it has no such kind");
  require(buffer.offset >= 0 && buffer.offset % 64 == 0, "its offset is not a multiple of 64");
  require(buffer.offset <= arena_bytes && buffer.bytes <= arena_bytes - buffer.offset, "it ends after the arena");
}

// `pieces` is 1 for an operator that runs once.
void check_extent(const qt_plan_desc& desc, int buffer, int64_t need, int64_t pieces, const std::string& what) {
  require(buffer >= 0 && buffer < desc.buffer_count, (what + " is no buffer").c_str());
  const int64_t have = desc.buffers[buffer].bytes;
  need += checked_product({pieces - 1, desc.buffers[buffer].piece_bytes});
  if (have < need) {
    throw InvalidPlan(what + " has " + std::to_string(have) + " bytes, expected " + std::to_string(need));
  }
}

std::string op_name(int index, int kind) {
  const Family* family = find_family(kind);
  const char* name = family != nullptr ? family->name : "?";
  return "operator " + std::to_string(index) + " (" + name + "): ";
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Marks the plan as running for as long as it lives.
class Running {
 public:
  explicit Running(std::atomic<bool>* flag) : flag_(flag) {
    if (flag->exchange(true, std::memory_order_acquire)) throw InvalidPlan("the plan is running already");
  }
  ~Running() { flag_->store(false, std::memory_order_release); }

 private:
  std::atomic<bool>* flag_;
};

}  // namespace

const Family* find_family(int kind) {
  for (const Family& family : kFamilies) {
    if (family.kind == kind && family.make != nullptr) return &family;
  }
  return nullptr;
}

std::vector<KernelInfo> all_kernels() {
  std::vector<KernelInfo> kernels;
  std::vector<void (*)(std::vector<KernelInfo>*)> seen;  // a family that serves several kinds has one list
  for (const Family& family : kFamilies) {
    if (family.list == nullptr || std::find(seen.begin(), seen.end(), family.list) != seen.end()) continue;
    seen.push_back(family.list);
    family.list(&kernels);
  }
  return kernels;
}

}  // namespace qtool

using qtool::InvalidPlan;
using qtool::UnsupportedPlan;

qt_plan::qt_plan(const qt_plan_desc& desc)
    : memories_(qtool::checked(desc).threads), arena_(desc.arena_bytes), pool_(qtool::shared_pool(desc.threads)),
      pieces_(desc.pieces), piece_ops_(desc.piece_ops) {
  place_buffers(desc);
  make_steps(desc);
  int64_t scratch = 0;
  for (const Step& step : steps_) scratch = std::max(scratch, step.op->scratch_bytes());
  qtool::require(scratch >= 0 && scratch <= qtool::kMaxScratch, "an operator needs too much scratch memory");
  // A page more a thread: over-reads stay inside, and two threads never share a cache line.
  scratch_stride_ = (scratch + 63) / 64 * 64 + qtool::QT_SLACK;
  scratch_ = std::make_unique<qtool::Block>(scratch_stride_ * desc.threads);
}

// Weights are packed by all threads; of several errors the first operator's is told.
void qt_plan::make_steps(const qt_plan_desc& desc) {
  steps_.resize(desc.op_count);
  std::vector<std::exception_ptr> errors(desc.op_count);
  pool_->parallel(desc.op_count, [&](int64_t i, int thread) {
    try {
      steps_[i] = make_step(desc, static_cast<int>(i), &memories_[thread]);
    } catch (...) {
      errors[i] = std::current_exception();
    }
  });
  for (int i = 0; i < desc.op_count; i++) {
    try {
      if (errors[i] != nullptr) std::rethrow_exception(errors[i]);
    } catch (const InvalidPlan& error) {
      throw InvalidPlan(qtool::op_name(i, desc.ops[i].kind) + error.what());
    } catch (const UnsupportedPlan& error) {
      throw UnsupportedPlan(qtool::op_name(i, desc.ops[i].kind) + error.what());
    }
  }
}

void qt_plan::place_buffers(const qt_plan_desc& desc) {
  addresses_.resize(desc.buffer_count);
  piece_bytes_.resize(desc.buffer_count);
  for (int i = 0; i < desc.buffer_count; i++) {
    const qt_buffer& buffer = desc.buffers[i];
    try {
      qtool::check_buffer(buffer, desc.arena_bytes);
    } catch (const InvalidPlan& error) {
      throw InvalidPlan("buffer " + std::to_string(i) + ": " + error.what());
    }
    piece_bytes_[i] = buffer.piece_bytes;
    if (buffer.kind == QT_BUFFER_EXTERNAL) {
      external_.push_back(i);
    } else {
      addresses_[i] = arena_.data() + buffer.offset;
    }
  }
}

qt_plan::Step qt_plan::make_step(const qt_plan_desc& desc, int index, qtool::Memory* memory) {
  const qt_op& op = desc.ops[index];
  const int64_t pieces = index < desc.piece_ops ? desc.pieces : 1;
  const qtool::Family* family = qtool::find_family(op.kind);
  if (family == nullptr) throw UnsupportedPlan("this library has no operator of kind " + std::to_string(op.kind));
  qtool::require(op.args != nullptr, "it has no arguments");
  qtool::require(op.input_count >= 0 && op.input_count <= QT_MAX_INPUTS, "the number of inputs is out of range");
  Step step;
  step.op = family->make(op, {desc.isa, desc.threads, op.kernel, memory});
  const qtool::Extents need = step.op->extents();
  if (op.input_count != need.input_count) {
    throw InvalidPlan("got " + std::to_string(op.input_count) + " inputs, expected " + std::to_string(need.input_count));
  }
  for (int i = 0; i < op.input_count; i++) {
    qtool::check_extent(desc, op.inputs[i], need.inputs[i], pieces, "input " + std::to_string(i));
    step.inputs[i] = op.inputs[i];
  }
  qtool::check_extent(desc, op.output, need.output, pieces, "the output");
  step.input_count = op.input_count;
  step.output = op.output;
  return step;
}

void qt_plan::bind(void* const* external) {
  qtool::require(external_.empty() || external != nullptr, "no external buffers are given");
  for (size_t i = 0; i < external_.size(); i++) {
    qtool::require(external[i] != nullptr, "an external buffer is missing");
    addresses_[external_[i]] = static_cast<uint8_t*>(external[i]);
  }
}

void qt_plan::run(void* const* external, double* seconds) {
  const qtool::Running running(&running_);
  bind(external);
  for (int64_t piece = 0; piece < pieces_; piece++) run_steps(0, piece_ops_, piece, seconds);
  run_steps(piece_ops_, static_cast<int>(steps_.size()), 0, seconds);
}

void qt_plan::run_part(void* const* external, int first, int last) {
  const qtool::Running running(&running_);
  qtool::require(piece_ops_ == 0, "operators that work in pieces run all together");
  qtool::require(first >= 0 && first <= last && last <= static_cast<int>(steps_.size()), "there are no such operators");
  bind(external);
  run_steps(first, last, 0, nullptr);
}

void qt_plan::run_steps(int first, int last, int64_t piece, double* seconds) {
  const auto address = [&](int buffer) { return addresses_[buffer] + piece * piece_bytes_[buffer]; };
  qtool::RunContext context = {};
  context.pool = pool_.get();
  context.scratch = scratch_->data();
  context.scratch_stride = scratch_stride_;
  double before = seconds != nullptr ? qtool::now() : 0;
  for (int i = first; i < last; i++) {
    const Step& step = steps_[i];
    for (int j = 0; j < step.input_count; j++) context.inputs[j] = address(step.inputs[j]);
    context.output = address(step.output);
    try {
      step.op->run(context);
    } catch (const InvalidPlan& error) {  // of what it was given
      throw InvalidPlan("operator " + std::to_string(i) + ": " + error.what());
    }
    if (seconds == nullptr) continue;
    const double end = qtool::now();
    seconds[i] += end - before;
    before = end;
  }
}

const void* qt_plan::address(int buffer) const {
  const bool known = buffer >= 0 && buffer < static_cast<int>(addresses_.size());
  const bool external = std::find(external_.begin(), external_.end(), buffer) != external_.end();
  return known && !external ? addresses_[buffer] : nullptr;
}

const char* qt_plan::kernel(int op) const {
  return op >= 0 && op < static_cast<int>(steps_.size()) ? steps_[op].op->kernel() : nullptr;
}

int64_t qt_plan::bytes() const {
  int64_t sum = arena_.bytes() + scratch_->bytes();
  for (const qtool::Memory& memory : memories_) sum += memory.bytes();
  for (const Step& step : steps_) sum += step.op->packed_bytes();
  return sum;
}
