#include "recurrent/products.h"

#include <cmath>

namespace qtool {

std::unique_ptr<Op> make_sconv(const qt_op& op, const MakeContext& context);
std::unique_ptr<Op> make_qlinear_dynamic(const qt_op& op, const MakeContext& context);

namespace {

// Where a part's weights, scales and biases begin.
struct Source {
  int inputs;
  int64_t weight, scale;  // in elements
  const float* bias;      // NULL where there is none
};

Source source_of(const qt_recurrent_args& args, const RecurrentProduct::Part& part) {
  const int64_t gates = int64_t{recurrent_gates(args.kind)} * args.hidden;
  const int inputs = part.recurrent ? args.hidden : args.in_features;
  const int64_t output = part.direction * gates + part.first;
  const int64_t bias = (2 * part.direction + part.recurrent) * gates + part.first;
  return {inputs, output * inputs, output, args.bias != nullptr ? args.bias + bias : nullptr};
}

std::unique_ptr<Op> make_dynamic(const qt_recurrent_args& args, const RecurrentProduct::Part& part,
                                 const MakeContext& context) {
  const Source source = source_of(args, part);
  qt_linear_dynamic_args linear = {};
  linear.rows = part.rows;
  linear.in_features = source.inputs;
  linear.out_features = part.outputs;
  linear.reduce_range = args.reduce_range;
  linear.row_wise = args.row_wise;
  linear.fused = args.fused;
  linear.out_min_f = -INFINITY;
  linear.out_max_f = INFINITY;
  linear.weight = static_cast<const int8_t*>(part.recurrent ? args.r : args.w) + source.weight;
  linear.w_scale = (part.recurrent ? args.r_scale : args.w_scale) + source.scale;
  linear.bias = source.bias;
  qt_op op = {};
  op.kind = QT_OP_QLINEAR_DYNAMIC;
  op.args = &linear;
  return make_qlinear_dynamic(op, context);
}

std::unique_ptr<Op> make_float(const qt_recurrent_args& args, const RecurrentProduct::Part& part,
                               const MakeContext& context) {
  const Source source = source_of(args, part);
  require(part.rows <= INT32_MAX, "the sizes are too large");
  qt_conv_args conv = {};
  conv.batch = static_cast<int32_t>(part.rows);
  conv.in_channels = source.inputs;
  conv.out_channels = part.outputs;
  for (int32_t* one : {&conv.in_height, &conv.in_width, &conv.out_height, &conv.out_width, &conv.kernel_height,
                       &conv.kernel_width, &conv.stride_height, &conv.stride_width, &conv.dilation_height,
                       &conv.dilation_width, &conv.groups}) {
    *one = 1;
  }
  conv.out_min_f = -INFINITY;
  conv.out_max_f = INFINITY;
  conv.weight = static_cast<const float*>(part.recurrent ? args.r : args.w) + source.weight;
  conv.bias_f32 = source.bias;
  qt_op op = {};
  op.kind = QT_OP_SCONV;
  op.args = &conv;
  return make_sconv(op, context);
}

}  // namespace

RecurrentProduct::RecurrentProduct(const qt_recurrent_args& args, const Part& part, const MakeContext& context)
    : op_(args.dynamic != 0 ? make_dynamic(args, part, context) : make_float(args, part, context)) {}

void RecurrentProduct::run(const RunContext& context, const float* x, float* y, bool backwards) const {
  RunContext own = context;
  own.inputs[0] = x;
  own.output = y;
  own.backwards = backwards;
  op_->run(own);
}

}  // namespace qtool
