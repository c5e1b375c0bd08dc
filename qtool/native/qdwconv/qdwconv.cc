#include "qdwconv/qdwconv.h"

#include <algorithm>

#include "core/rows.h"
#include "qconv/after.h"
#include "qconv/pack.h"
#include "qconv/shape.h"
#include "qdwconv/pack.h"

namespace qtool {
namespace {

constexpr Row<const QdwconvKernel*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "qdwconv/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kChunkBytes = 16384;  // of the output: some microseconds
constexpr int64_t kLeastChunks = 8;     // where there are lines for them: threads end together

class Qdwconv final : public Op {
 public:
  Qdwconv(const qt_conv_args& args, const Row<const QdwconvKernel*>& row, Memory* memory);
  void run(const RunContext& context) const override;
  const char* kernel() const override { return row_.name; }
  Extents extents() const override { return extents_; }
  int64_t scratch_bytes() const override;

 private:
  void run_line(const RunContext& context, int64_t index, uint8_t* scratch) const;

  qt_conv_args args_;  // without its arrays
  Row<const QdwconvKernel*> row_;
  Extents extents_;
  QconvAfter after_;
  QdwconvPacked packed_;
};

Qdwconv::Qdwconv(const qt_conv_args& args, const Row<const QdwconvKernel*>& row, Memory* memory)
    : args_(args), row_(row), extents_(qconv_extents(args)), after_(args, row.isa),
      packed_(pack_qdwconv(args, *row.kernel, memory)) {
  args_.weight = nullptr;
  args_.bias_i32 = nullptr;
  args_.bias_f32 = args_.multiplier = nullptr;
  args_.add = nullptr;
  args_.lut = nullptr;
}

// A thread's: the rows of a line, then the kernel's pointers.
int64_t Qdwconv::scratch_bytes() const {
  const int64_t slots = packed_.slots.size();
  return checked_product({args_.kernel_height + slots, sizeof(uint8_t*)});
}

void Qdwconv::run(const RunContext& context) const {
  const int64_t lines = int64_t{args_.batch} * args_.out_height;
  const int64_t line_bytes = int64_t{args_.out_width} * args_.out_channels;
  if (lines * line_bytes == 0) return;
  const int64_t lines_a_chunk = std::max<int64_t>(1, std::min(kChunkBytes / line_bytes, lines / kLeastChunks));
  context.pool->parallel((lines + lines_a_chunk - 1) / lines_a_chunk, [&](int64_t chunk, int thread) {
    uint8_t* scratch = context.scratch + thread * context.scratch_stride;
    const int64_t end = std::min(lines, (chunk + 1) * lines_a_chunk);
    for (int64_t line = chunk * lines_a_chunk; line < end; line++) run_line(context, line, scratch);
  });
}

void Qdwconv::run_line(const RunContext& context, int64_t index, uint8_t* scratch) const {
  const int64_t row_bytes = int64_t{args_.in_width} * args_.in_channels;
  const int64_t pitch = packed_.shape.pitch, line_bytes = args_.out_width * pitch;
  const uint8_t* image = static_cast<const uint8_t*>(context.inputs[0]) +
                         index / args_.out_height * args_.in_height * row_bytes;
  const uint8_t** rows = reinterpret_cast<const uint8_t**>(scratch);
  int64_t y = index % args_.out_height * args_.stride_height - args_.pad_top;
  for (int ky = 0; ky < args_.kernel_height; ky++, y += args_.dilation_height) {
    rows[ky] = y >= 0 && y < args_.in_height ? image + y * row_bytes : nullptr;
  }
  const uint8_t* other = nullptr;
  if (args_.residual != 0) other = static_cast<const uint8_t*>(context.inputs[1]) + index * line_bytes;
  uint8_t* out = static_cast<uint8_t*>(context.output) + args_.out_offset + index * line_bytes;
  row_.kernel->run({&packed_.shape, rows, rows + args_.kernel_height, args_.residual == 1 ? other : nullptr, out});
  after_.run(out, other, args_.out_width, args_.out_channels, pitch);
}

}  // namespace

std::unique_ptr<Op> make_qdwconv(const qt_op& op, const MakeContext& context) {
  const qt_conv_args& args = *static_cast<const qt_conv_args*>(op.args);
  check_qconv(args);
  require(args.groups == args.in_channels && args.groups == args.out_channels, "the convolution is not depthwise");
  return std::make_unique<Qdwconv>(args, select_row(kRows, context), context.memory);
}

void list_qdwconv(std::vector<KernelInfo>* list) { list_rows("qdwconv", kRows, list); }

}  // namespace qtool
