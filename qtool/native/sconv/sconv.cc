#include "sconv/sconv.h"

#include <cstring>

#include "core/rows.h"
#include "sconv/matmul.h"
#include "sconv/product.h"
#include "sconv/shape.h"

namespace qtool {

std::unique_ptr<Op> make_sdwconv(const qt_op& op, const MakeContext& context);

namespace {

constexpr Row<const SconvKernel*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "sconv/kernels.inc"
#undef QT_KERNEL
};

class Sconv final : public Op {
 public:
  Sconv(const qt_conv_args& args, const Row<const SconvKernel*>& row, Memory* memory);
  void run(const RunContext& context) const override;
  const char* kernel() const override { return row_.name; }
  Extents extents() const override { return extents_; }
  int64_t scratch_bytes() const override { return product_.scratch_bytes(); }

 private:
  Row<const SconvKernel*> row_;
  Extents extents_;
  SconvProduct product_;
};

// Packs [columns][depth] to [depth][width]; the rest of each row stays zero.
void pack(const float* weight, int64_t depth, int columns, int width, float* packed) {
  for (int64_t k = 0; k < depth; k++) {
    for (int c = 0; c < columns; c++) packed[k * width + c] = weight[c * depth + k];
  }
}

Sconv::Sconv(const qt_conv_args& args, const Row<const SconvKernel*>& row, Memory* memory)
    : row_(row), extents_(sconv_extents(args)), product_(args, *row.kernel, memory) {
  const int64_t depth = product_.depth();
  for (const SconvPanel& panel : product_.panels()) {
    const float* weight = static_cast<const float*>(args.weight) + panel.output * depth;
    pack(weight, depth, panel.columns, panel.vectors * row.kernel->step, panel.weight);
    if (args.bias_f32 != nullptr) std::memcpy(panel.bias, args.bias_f32 + panel.output, panel.columns * 4);
  }
}

void Sconv::run(const RunContext& context) const {
  const float* residual = extents_.input_count > 1 ? static_cast<const float*>(context.inputs[1]) : nullptr;
  product_.run(context, static_cast<const float*>(context.inputs[0]), residual, static_cast<float*>(context.output));
}

}  // namespace

std::unique_ptr<Op> make_sconv(const qt_op& op, const MakeContext& context) {
  if (op.kind == QT_OP_SMATMUL) {
    return make_smatmul(*static_cast<const qt_matmul_args*>(op.args), select_row(kRows, context));
  }
  const qt_conv_args& args = *static_cast<const qt_conv_args*>(op.args);
  check_sconv(args);
  const bool named = context.kernel != nullptr;
  if (named ? std::strncmp(context.kernel, "sdwconv_", 8) == 0 : is_depthwise(args)) return make_sdwconv(op, context);
  return std::make_unique<Sconv>(args, select_row(kRows, context), context.memory);
}

void list_sconv(std::vector<KernelInfo>* list) { list_rows("sconv", kRows, list); }

}  // namespace qtool
