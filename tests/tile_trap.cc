// Runs the kernels that are compiled for the tile unit on a CPU without one: SIGILL's handler reads the instruction and
// lets the model in core/tile_emulation.cc do it. So the compiler's own code, its registers, addresses and order, is
// compared with the kernels in plain C++ and for AVX512-VNNI. Where there is a tile unit, it runs itself.
//
// Prints a line for each kernel with the number of results and of tile instructions trapped; exits with 1 at the first
// difference.
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "core/tile.h"
#include "qlinear_dynamic/qlinear_dynamic.h"
#include "qtileconv/qtileconv.h"

namespace {

using namespace qtool;

// ---- the handler ---------------------------------------------------------------------------------------------------

constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
enum Prefix { kNone, k66, kF3, kF2 };

int64_t trapped = 0;

// VEX.128.0F38.W0: C4, inverted RXB and the map, W vvvv L pp, opcode, ModRM.
struct Instruction {
  const uint8_t* at;
  greg_t* registers;

  int opcode() const { return at[3]; }
  int mod() const { return at[4] >> 6; }
  int reg() const { return at[4] >> 3 & 7; }
  int rm() const { return at[4] & 7; }
  Prefix prefix() const { return static_cast<Prefix>(at[2] & 3); }
  int extra() const { return ~(at[2] >> 3) & 7; }  // vvvv
  bool is_vex() const { return at[0] == 0xc4 && (at[1] & 0x1f) == 2 && (at[2] & 0x84) == 0; }
  int64_t number(int low, int bit) const { return registers[kRegisters[low | (at[1] & bit ? 0 : 8)]]; }
  bool has_sib() const { return rm() == 4; }
  int64_t index() const { return (at[5] >> 3 & 7) == 4 && (at[1] & 0x40) ? 0 : number(at[5] >> 3 & 7, 0x40); }

  // The address of the memory operand without its index, and the length of the instruction.
  uint8_t* base(int* length) const {
    const int low = has_sib() ? at[5] & 7 : rm(), displacement = has_sib() ? 6 : 5;
    int64_t address = 0;
    int32_t far = 0;
    if (mod() == 0 && low == 5) abort();  // no base, or relative to RIP: the kernels have neither
    address = number(low, 0x20);
    if (mod() == 1) address += static_cast<int8_t>(at[displacement]);
    if (mod() == 2) memcpy(&far, at + displacement, 4);
    *length = displacement + (mod() == 1 ? 1 : mod() == 2 ? 4 : 0);
    return reinterpret_cast<uint8_t*>(address + far);
  }
};

void on_illegal(int, siginfo_t*, void* given) {
  greg_t* registers = static_cast<ucontext_t*>(given)->uc_mcontext.gregs;
  const Instruction i = {reinterpret_cast<const uint8_t*>(registers[REG_RIP]), registers};
  int length = 5;
  if (!i.is_vex()) abort();
  if (i.opcode() == 0x49 && i.prefix() == kNone && i.mod() == 3) {
    emulate_tile_release();
  } else if (i.opcode() == 0x49 && i.prefix() == kNone) {
    const uint8_t* config = i.base(&length) + (i.has_sib() ? i.index() : 0);
    emulate_tile_config(*reinterpret_cast<const TileConfig*>(config));
  } else if (i.opcode() == 0x4b && i.has_sib() && (i.prefix() == kF2 || i.prefix() == kF3)) {
    uint8_t* base = i.base(&length);
    const int64_t pitch = i.index() << (i.at[5] >> 6);
    if (i.prefix() == kF2) {
      emulate_tile_load(i.reg(), base, pitch);
    } else {
      emulate_tile_store(i.reg(), base, pitch);
    }
  } else if (i.opcode() == 0x5e && i.prefix() == k66 && i.mod() == 3) {
    emulate_tile_dot(i.reg(), i.rm(), i.extra());
  } else {
    abort();
  }
  trapped++;
  registers[REG_RIP] += length;
}

// ---- the comparisons -----------------------------------------------------------------------------------------------

std::mt19937 generator(7);

int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

template <class T>
struct Array {  // 64-byte aligned
  explicit Array(size_t count) : size(count) {
    const size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
    data = static_cast<T*>(memset(aligned_alloc(64, bytes), 0, bytes));
  }
  ~Array() { free(data); }
  Array(const Array&) = delete;
  T& operator[](size_t i) { return data[i]; }
  size_t size;
  T* data;
};

template <class T>
void fill(Array<T>& array, int low, int high) {
  for (size_t i = 0; i < array.size; i++) array[i] = static_cast<T>(draw(low, high));
}

template <class T>
void compare(const char* what, Array<T>& got, Array<T>& wanted, int64_t* results) {
  *results += static_cast<int64_t>(got.size);
  if (memcmp(got.data, wanted.data, got.size * sizeof(T)) == 0) return;
  printf("%s differs\n", what);
  exit(1);
}

void compare_qtileconv(int row_tiles, int steps, int blocks, int panels, bool residual, int64_t* results) {
  const int width = 64 / row_tiles, tile_count = blocks * row_tiles, rows = tile_count * 16, pitch = steps * 64 + 64;
  const int channels = panels * width;
  Array<uint8_t> a(static_cast<size_t>(rows * pitch)), other(static_cast<size_t>(rows * channels));
  Array<int8_t> weight(static_cast<size_t>(panels * steps * width * 64));
  Array<int32_t> start(static_cast<size_t>(channels));
  Array<float> bias(static_cast<size_t>(channels)), multiplier(static_cast<size_t>(channels));
  fill(a, 0, 255);
  fill(other, 0, 255);
  fill(weight, -128, 127);
  fill(start, -100000, 100000);
  fill(bias, -50000, 50000);
  const float scale = 1e-5f / static_cast<float>(steps);
  for (int c = 0; c < channels; c++) multiplier[c] = static_cast<float>(draw(1, 100)) * scale;
  std::vector<const uint8_t*> tiles;
  std::vector<int64_t> outputs, offsets;
  std::vector<QtileconvPanel> parts;
  for (int t = 0; t < tile_count; t++) tiles.push_back(a.data + t * 16 * pitch);
  for (int r = 0; r < rows; r++) outputs.push_back(draw(0, 7) == 0 ? -1 : int64_t{r} * channels);
  for (int k = 0; k < steps; k++) offsets.push_back((k * 5 + 2) % steps * 64);
  for (int p = 0; p < panels; p++) {
    const int columns = p + 1 < panels ? width : draw(1, width), at = p * width;
    const int8_t* part = weight.data + at * steps * 64;
    parts.push_back({columns, 0, at, part, start.data + at, bias.data + at, multiplier.data + at});
  }
  const QconvFinish finish = {13, 2, 250, 2.0f - 13, 250.0f - 13, 100, 0.4f, draw(0, 1) == 0};
  Array<uint8_t> got(static_cast<size_t>(rows * channels)), wanted(static_cast<size_t>(rows * channels));
  const uint8_t* added = residual ? other.data : nullptr;
  QtileconvJob job = {row_tiles, tiles.data(), outputs.data(), blocks,  pitch, offsets.data(),
                      steps,     parts.data(), panels,         &finish, added, got.data};
  qtileconv_amx.run(job);
  job.out = wanted.data;
  qtileconv_scalar.run(job);
  compare("qtileconv_amx", got, wanted, results);
}

void compare_qlinear_dynamic(int rows, int steps, int columns, int64_t* results) {
  const int pitch = steps * 64;
  Array<uint8_t> q(static_cast<size_t>((rows + 15) * pitch));
  Array<int8_t> weight(static_cast<size_t>(pitch * 64));
  Array<int32_t> sums(64), zero(static_cast<size_t>(rows));
  Array<float> scale(64), bias(64), x_scale(static_cast<size_t>(rows));
  fill(q, 0, 255);
  fill(weight, -128, 127);
  fill(sums, -5000, 5000);
  fill(zero, 0, 255);
  fill(bias, -9, 9);
  for (int c = 0; c < 64; c++) scale[c] = static_cast<float>(draw(1, 1000)) * 1e-3f;
  for (int r = 0; r < rows; r++) x_scale[r] = static_cast<float>(draw(1, 1000)) * 1e-4f;
  Array<float> got(static_cast<size_t>(rows * 64)), wanted(static_cast<size_t>(rows * 64));
  QlinearDynamicTile tile = {q.data, pitch, pitch / 4, weight.data, sums.data, scale.data, bias.data, x_scale.data,
                             zero.data, got.data, 64, rows, 1, columns, -1e3f, 1e3f, draw(0, 1) == 0};
  qlinear_dynamic_amx.run(tile);
  for (int r = 0; r < rows; r++) {  // the panel is as wide as four vectors
    tile.rows = 1;
    tile.vectors = 4;
    tile.q = q.data + r * pitch;
    tile.x_scale = x_scale.data + r;
    tile.x_zero = zero.data + r;
    tile.out = wanted.data + r * 64;
    qlinear_dynamic_avx512vnni.run(tile);
  }
  compare("qlinear_dynamic_amx", got, wanted, results);
}

void report(const char* kernel, int64_t results) {
  printf("%s: %lld results are the same, %lld tile instructions trapped\n", kernel, static_cast<long long>(results),
         static_cast<long long>(trapped));
}

}  // namespace

int main() {
  syscall(SYS_arch_prctl, 0x1023, 18);  // where there is a tile unit
  struct sigaction action = {};
  action.sa_sigaction = on_illegal;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, nullptr);
  int64_t results = 0;
  for (const int row_tiles : {1, 2, 4}) {
    for (int steps = 1; steps <= 7; steps++) {
      for (const bool residual : {false, true}) {
        compare_qtileconv(row_tiles, steps, draw(1, 4), draw(1, 3), residual, &results);
      }
    }
  }
  report("qtileconv_amx", results);
  results = trapped = 0;
  for (const int rows : {1, 16, 17, 32, 40, 64, 65, 96}) {
    for (int steps = 1; steps <= 6; steps++) compare_qlinear_dynamic(rows, steps, draw(1, 64), &results);
  }
  report("qlinear_dynamic_amx", results);
  return 0;
}
