#include "qconv/regions.h"

#include <algorithm>

namespace qtool {
namespace {

constexpr int64_t kMostBorder = 64;  // positions along an axis that see padding, to be looked at one by one

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Axis {
  int64_t in, out, kernel, stride, pad, dilation;
};

// Positions of the output, and the taps that they see.
struct Span {
  int64_t begin, end;
  int64_t tap_begin, tap_end;
};

// The taps inside of the picture at one position; one of them where all are outside.
Span look(const Axis& a, int64_t position) {
  const int64_t first = position * a.stride - a.pad;
  const int64_t begin = std::min(first < 0 ? ceil_div(-first, a.dilation) : 0, a.kernel - 1);
  const int64_t end = first < a.in ? (a.in - 1 - first) / a.dilation + 1 : 0;
  return {position, position + 1, begin, std::clamp(end, begin + 1, a.kernel)};
}

void append(std::vector<Span>* spans, const Span& span) {
  Span* last = spans->empty() ? nullptr : &spans->back();
  if (last != nullptr && last->tap_begin == span.tap_begin && last->tap_end == span.tap_end) {
    last->end = span.end;
  } else {
    spans->push_back(span);
  }
}

// Joins spans that are shorter than `least` to their longer neighbours.
void join_short(std::vector<Span>* spans, int64_t least) {
  const auto length = [](const Span& span) { return span.end - span.begin; };
  for (size_t i = 0; i < spans->size() && spans->size() > 1;) {
    if (length((*spans)[i]) >= least) {
      i++;
      continue;
    }
    const bool has_left = i > 0, has_right = i + 1 < spans->size();
    const bool left = !has_right || (has_left && length((*spans)[i - 1]) > length((*spans)[i + 1]));
    const size_t first = left ? i - 1 : i;
    Span& joined = (*spans)[first];
    const Span& other = (*spans)[first + 1];
    joined = {joined.begin, other.end, std::min(joined.tap_begin, other.tap_begin),
              std::max(joined.tap_end, other.tap_end)};
    spans->erase(spans->begin() + first + 1);
    i = first;
  }
}

std::vector<Span> cut_axis(const Axis& a, int64_t least) {
  const int64_t reach = (a.kernel - 1) * a.dilation, last = a.in - 1 + a.pad - reach;
  const int64_t inner_begin = std::clamp<int64_t>(a.pad > 0 ? ceil_div(a.pad, a.stride) : 0, 0, a.out);
  const int64_t inner_end = std::clamp<int64_t>(last >= 0 ? last / a.stride + 1 : 0, inner_begin, a.out);
  if (a.out - (inner_end - inner_begin) > kMostBorder) return {{0, a.out, 0, a.kernel}};
  std::vector<Span> spans;
  for (int64_t p = 0; p < inner_begin; p++) append(&spans, look(a, p));
  if (inner_begin < inner_end) append(&spans, {inner_begin, inner_end, 0, a.kernel});
  for (int64_t p = inner_end; p < a.out; p++) append(&spans, look(a, p));
  join_short(&spans, least);
  return spans;
}

}  // namespace

std::vector<QconvRegion> cut_regions(const qt_conv_args& a, bool whole_rows, int64_t least) {
  if (a.batch == 0 || a.out_height == 0 || a.out_width == 0) return {};
  const Axis y = {a.in_height, a.out_height, a.kernel_height, a.stride_height, a.pad_top, a.dilation_height};
  const Axis x = {a.in_width, a.out_width, a.kernel_width, a.stride_width, a.pad_left, a.dilation_width};
  std::vector<QconvRegion> regions;
  for (const Span& lines : cut_axis(y, ceil_div(least, int64_t{a.batch} * a.out_width))) {
    const int64_t height = lines.end - lines.begin;
    std::vector<Span> columns = {{0, x.out, 0, x.kernel}};
    if (!whole_rows) columns = cut_axis(x, ceil_div(least, int64_t{a.batch} * height));
    for (const Span& span : columns) {
      regions.push_back({lines.begin, span.begin, height, span.end - span.begin, lines.tap_begin, span.tap_begin,
                         lines.tap_end - lines.tap_begin, span.tap_end - span.tap_begin});
    }
  }
  return regions;
}

}  // namespace qtool
