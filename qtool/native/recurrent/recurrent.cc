#include "recurrent/recurrent.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/rows.h"
#include "recurrent/products.h"

namespace qtool {
namespace {

constexpr Row<const RecurrentKernels*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "recurrent/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kChunkUnits = 4096;  // of the cells

// The parts of the output buffer: y, the last states, and room to work.
struct Places {
  float *y, *last_h, *last_c;
  float *hidden, *memory;           // [batch][hidden], of the direction at work
  float *masked, *update, *reset;   // [batch][hidden]
  float* inner;                     // [batch][hidden]
  float* product;                   // [batch][gates * hidden]
  float* projected;                 // [time * batch][gates * hidden], rows as those of x
  float* x;                         // [time * batch][in], x without what lies behind the ends
};

struct Direction {
  std::vector<RecurrentProduct> input, state;  // state: one, or two for a GRU that resets before the product
  const float* peephole;
};

class Recurrent final : public Op {
 public:
  Recurrent(const qt_recurrent_args& args, const Row<const RecurrentKernels*>& row, const MakeContext& context);
  void run(const RunContext& context) const override;
  const char* kernel() const override { return row_.name; }
  Extents extents() const override;
  int64_t scratch_bytes() const override;
  int64_t packed_bytes() const override;

 private:
  Direction make_direction(const qt_recurrent_args& args, int direction, const MakeContext& context) const;
  bool masks_x() const { return a_.lengths_bytes != 0 && a_.dynamic != 0; }
  bool resets_first() const { return a_.kind == QT_GRU && a_.linear_before_reset == 0; }
  int64_t floats(Places* places, float* base) const;
  int64_t length(const RunContext& context, int64_t sample) const;
  int64_t least_length(const RunContext& context) const;
  void check_lengths(const RunContext& context) const;
  const float* masked_x(const RunContext& context, const Places& at) const;
  float* state_of(float* states, int direction, int64_t sample) const;
  void enter(const RunContext& context, const Places& at, int direction) const;
  void leave(const Places& at, int direction) const;
  void step(const RunContext& context, const Places& at, int direction, int64_t time) const;
  template <class F>
  void each_row(const RunContext& context, const F& f) const;

  qt_recurrent_args a_;  // without its arrays
  Row<const RecurrentKernels*> row_;
  int64_t units_;        // gates * hidden
  int64_t rows_;         // time * batch
  std::vector<Direction> directions_;
};

Recurrent::Recurrent(const qt_recurrent_args& args, const Row<const RecurrentKernels*>& row,
                     const MakeContext& context)
    : a_(args), row_(row), units_(int64_t{recurrent_gates(args.kind)} * args.hidden),
      rows_(int64_t{args.time} * args.batch) {
  // What is named is run with products of its own instruction set.
  const MakeContext own = {context.kernel != nullptr ? row.isa : context.isa, context.threads, nullptr, context.memory};
  for (int d = 0; d < args.directions; d++) directions_.push_back(make_direction(args, d, own));
  a_.w = a_.r = nullptr;
  a_.w_scale = a_.r_scale = a_.bias = a_.peephole = nullptr;
}

Direction Recurrent::make_direction(const qt_recurrent_args& args, int direction, const MakeContext& context) const {
  Direction made;
  const int units = static_cast<int>(units_), twice = 2 * args.hidden;
  made.input.emplace_back(args, RecurrentProduct::Part{direction, false, rows_, 0, units}, context);
  const int first = resets_first() ? twice : units;
  made.state.emplace_back(args, RecurrentProduct::Part{direction, true, args.batch, 0, first}, context);
  if (resets_first()) {
    made.state.emplace_back(args, RecurrentProduct::Part{direction, true, args.batch, twice, args.hidden}, context);
  }
  float* peephole = reinterpret_cast<float*>(context.memory->allocate(int64_t{3} * args.hidden * 4));
  if (args.peephole != nullptr) {
    std::memcpy(peephole, args.peephole + int64_t{3} * args.hidden * direction, int64_t{3} * args.hidden * 4);
  }
  made.peephole = peephole;
  return made;
}

int64_t Recurrent::scratch_bytes() const {
  int64_t most = 0;
  for (const Direction& direction : directions_) {
    for (const RecurrentProduct& product : direction.input) most = std::max(most, product.scratch_bytes());
    for (const RecurrentProduct& product : direction.state) most = std::max(most, product.scratch_bytes());
  }
  return most;
}

int64_t Recurrent::packed_bytes() const {
  int64_t sum = 0;
  for (const Direction& direction : directions_) {
    for (const RecurrentProduct& product : direction.input) sum += product.packed_bytes();
    for (const RecurrentProduct& product : direction.state) sum += product.packed_bytes();
  }
  return sum;
}

// Lays the parts out from `base` on; gives their floats together.
int64_t Recurrent::floats(Places* places, float* base) const {
  float* at = base;
  const auto take = [&at](int64_t count) {
    float* begin = at;
    at += count;
    return begin;
  };
  const int64_t state = int64_t{a_.batch} * a_.hidden, lasts = state * a_.directions;
  places->y = take(lasts * a_.time);
  places->last_h = take(lasts);
  places->last_c = take(a_.kind == QT_LSTM ? lasts : 0);
  for (float** part : {&places->hidden, &places->memory, &places->masked, &places->update, &places->reset,
                       &places->inner}) {
    *part = take(state);
  }
  places->product = take(a_.batch * units_);
  places->projected = take(rows_ * units_);
  places->x = take(masks_x() ? rows_ * a_.in_features : 0);
  return at - base;
}

Extents Recurrent::extents() const {
  Places places;
  const int64_t state = checked_product({a_.directions, a_.batch, a_.hidden, 4});
  Extents extents = {1, {checked_product({rows_, a_.in_features, 4})}, floats(&places, nullptr) * 4};
  if (a_.lengths_bytes != 0) extents.inputs[extents.input_count++] = int64_t{a_.batch} * a_.lengths_bytes;
  if (a_.initial_h != 0) extents.inputs[extents.input_count++] = state;
  if (a_.initial_c != 0) extents.inputs[extents.input_count++] = state;
  return extents;
}

int64_t Recurrent::length(const RunContext& context, int64_t sample) const {
  if (a_.lengths_bytes == 0) return a_.time;
  const void* lengths = context.inputs[1];
  return a_.lengths_bytes == 8 ? static_cast<const int64_t*>(lengths)[sample]
                               : static_cast<const int32_t*>(lengths)[sample];
}

int64_t Recurrent::least_length(const RunContext& context) const {
  int64_t least = a_.time;
  for (int64_t n = 0; n < a_.batch && a_.lengths_bytes != 0; n++) least = std::min(least, length(context, n));
  return least;
}

// Of a layer that is quantized at run time, as its reference has it; a float one takes any.
void Recurrent::check_lengths(const RunContext& context) const {
  if (!masks_x()) return;
  int64_t least = a_.time, most = 0;
  for (int64_t n = 0; n < a_.batch; n++) {
    least = std::min(least, length(context, n));
    most = std::max(most, length(context, n));
  }
  if (least >= 0 && most <= a_.time) return;
  throw InvalidPlan("got sequence lengths from " + std::to_string(least) + " to " + std::to_string(most) +
                    ", expected 0 to " + std::to_string(a_.time));
}

// What lies behind a sequence's end is to have no part in the range of the others.
const float* Recurrent::masked_x(const RunContext& context, const Places& at) const {
  const float* x = static_cast<const float*>(context.inputs[0]);
  if (!masks_x() || least_length(context) >= a_.time) return x;
  const int64_t features = a_.in_features;
  for (int64_t row = 0; row < rows_; row++) {
    const int64_t sample = a_.batch_first != 0 ? row / a_.time : row % a_.batch;
    const int64_t time = a_.batch_first != 0 ? row % a_.time : row / a_.batch;
    if (time < length(context, sample)) {
      std::memcpy(at.x + row * features, x + row * features, features * 4);
    } else {
      std::memset(at.x + row * features, 0, features * 4);
    }
  }
  return at.x;
}

// Within (directions, batch, hidden), or (batch, directions, hidden).
float* Recurrent::state_of(float* states, int direction, int64_t sample) const {
  const int64_t row = a_.batch_first != 0 ? sample * a_.directions + direction : direction * int64_t{a_.batch} + sample;
  return states + row * a_.hidden;
}

void Recurrent::enter(const RunContext& context, const Places& at, int direction) const {
  const int first = a_.lengths_bytes != 0 ? 2 : 1;
  const void* starts[] = {a_.initial_h != 0 ? context.inputs[first] : nullptr,
                          a_.initial_c != 0 ? context.inputs[first + (a_.initial_h != 0)] : nullptr};
  float* states[] = {at.hidden, at.memory};
  for (int s = 0; s < 2; s++) {
    for (int64_t n = 0; n < a_.batch; n++) {
      float* to = states[s] + n * a_.hidden;
      if (starts[s] == nullptr) {
        std::memset(to, 0, a_.hidden * 4);
      } else {
        float* start = const_cast<float*>(static_cast<const float*>(starts[s]));  // only read
        std::memcpy(to, state_of(start, direction, n), a_.hidden * 4);
      }
    }
  }
}

void Recurrent::leave(const Places& at, int direction) const {
  for (int64_t n = 0; n < a_.batch; n++) {
    std::memcpy(state_of(at.last_h, direction, n), at.hidden + n * a_.hidden, a_.hidden * 4);
    if (a_.kind != QT_LSTM) continue;
    std::memcpy(state_of(at.last_c, direction, n), at.memory + n * a_.hidden, a_.hidden * 4);
  }
}

template <class F>
void Recurrent::each_row(const RunContext& context, const F& f) const {
  const int64_t batch = a_.batch, rows = std::max<int64_t>(1, kChunkUnits / a_.hidden);
  context.pool->parallel((batch + rows - 1) / rows, [&](int64_t chunk, int) {
    const int64_t end = std::min(batch, (chunk + 1) * rows);
    for (int64_t n = chunk * rows; n < end; n++) f(n);
  });
}

// Samples that do not run keep their states, and count as zeros in the product.
void Recurrent::step(const RunContext& context, const Places& at, int direction, int64_t time) const {
  const Direction& own = directions_[direction];
  const int64_t n = a_.hidden, batch = a_.batch;
  const bool whole = least_length(context) > time;
  const float* source = at.hidden;
  if (!whole) {
    for (int64_t s = 0; s < batch; s++) {
      const float* from = time < length(context, s) ? at.hidden + s * n : nullptr;
      if (from != nullptr) std::memcpy(at.masked + s * n, from, n * 4);
      if (from == nullptr) std::memset(at.masked + s * n, 0, n * 4);
    }
    source = at.masked;
  }
  own.state[0].run(context, source, at.product, time % 2 != 0);
  const int64_t product_units = resets_first() ? 2 * n : units_;
  const auto row_of = [&](int64_t s) {
    const int64_t x_row = a_.batch_first != 0 ? s * a_.time + time : time * batch + s;
    const bool flag = a_.kind == QT_LSTM ? a_.input_forget != 0 : a_.relu != 0;
    return RecurrentRow{at.product + s * product_units, at.projected + x_row * units_, own.peephole,
                        at.inner + s * n, at.update + s * n, at.reset + s * n, at.hidden + s * n, at.memory + s * n,
                        n, a_.clip, flag};
  };
  if (resets_first()) {
    each_row(context, [&](int64_t s) {
      if (time < length(context, s)) return row_.kernel->reset(row_of(s));
      std::memset(at.reset + s * n, 0, n * 4);
    });
    own.state[1].run(context, at.reset, at.inner);
  }
  const RecurrentKernels& kernels = *row_.kernel;
  const auto cell = a_.kind == QT_LSTM ? kernels.lstm
                    : a_.kind == QT_RNN ? kernels.rnn
                    : resets_first()    ? kernels.finish
                                        : kernels.gru;
  each_row(context, [&](int64_t s) {
    const int64_t y_row = a_.batch_first != 0 ? (s * a_.time + time) * a_.directions + direction
                                              : (time * a_.directions + direction) * batch + s;
    if (time >= length(context, s)) {
      std::memset(at.y + y_row * n, 0, n * 4);
      return;
    }
    cell(row_of(s));
    std::memcpy(at.y + y_row * n, at.hidden + s * n, n * 4);
  });
}

void Recurrent::run(const RunContext& context) const {
  check_lengths(context);
  Places at;
  floats(&at, static_cast<float*>(context.output));
  const float* x = masked_x(context, at);
  for (int d = 0; d < a_.directions; d++) {
    const bool backwards = a_.reverse != 0 || d == 1;
    directions_[d].input[0].run(context, x, at.projected);
    enter(context, at, d);
    for (int64_t t = 0; t < a_.time; t++) step(context, at, d, backwards ? a_.time - 1 - t : t);
    leave(at, d);
  }
}

void check(const qt_recurrent_args& a) {
  require(a.kind >= QT_LSTM && a.kind <= QT_RNN, "there is no such recurrent layer");
  for (const int size : {a.time, a.batch, a.in_features, a.hidden}) require(size >= 1, "a size is not positive");
  require(a.directions == 1 || a.directions == 2, "there are one or two directions");
  require(a.lengths_bytes == 0 || a.lengths_bytes == 4 || a.lengths_bytes == 8, "lengths have 4 or 8 bytes");
  require(a.initial_c == 0 || a.kind == QT_LSTM, "only an LSTM has a memory");
  require(a.clip >= 0, "the clip is not a number of 0 or more");
  require(a.w != nullptr && a.r != nullptr, "a weight is missing");
  require(a.dynamic == 0 || (a.w_scale != nullptr && a.r_scale != nullptr), "a weight's scale is missing");
  checked_product({recurrent_gates(a.kind), a.hidden, std::max(a.hidden, a.in_features), 4});
  require(int64_t{4} * a.hidden <= INT32_MAX, "the sizes are too large");
  checked_product({a.directions + 6, a.time, a.batch, a.hidden, 32});
}

}  // namespace

std::unique_ptr<Op> make_recurrent(const qt_op& op, const MakeContext& context) {
  const qt_recurrent_args& args = *static_cast<const qt_recurrent_args*>(op.args);
  check(args);
  return std::make_unique<Recurrent>(args, select_row(kRows, context), context);
}

void list_recurrent(std::vector<KernelInfo>* list) { list_rows("recurrent", kRows, list); }

}  // namespace qtool
