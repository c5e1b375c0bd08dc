// The C face: no exception leaves it.
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <system_error>

#include "core/cpu.h"
#include "core/plan.h"

namespace {

int32_t fail(int32_t status, const char* text, char* error, int64_t error_bytes) {
  if (error != nullptr && error_bytes > 0) std::snprintf(error, static_cast<size_t>(error_bytes), "%s", text);
  return status;
}

// The status of f(), and the text of what it throws.
template <class F>
int32_t guarded(char* error, int64_t error_bytes, const F& f) {
  try {
    f();
    return QT_OK;
  } catch (const qtool::InvalidPlan& e) {
    return fail(QT_INVALID, e.what(), error, error_bytes);
  } catch (const qtool::UnsupportedPlan& e) {
    return fail(QT_UNSUPPORTED, e.what(), error, error_bytes);
  } catch (const std::bad_alloc&) {
    return fail(QT_NO_MEMORY, "there is not enough memory for the plan", error, error_bytes);
  } catch (const std::system_error&) {
    return fail(QT_NO_MEMORY, "the system gives no more threads", error, error_bytes);
  } catch (const std::exception& e) {
    return fail(QT_INVALID, e.what(), error, error_bytes);
  }
}

}  // namespace

extern "C" {

int32_t qt_plan_create(const qt_plan_desc* desc, qt_plan** plan, char* error, int64_t error_bytes) {
  return guarded(error, error_bytes, [&] {
    qtool::require(desc != nullptr && plan != nullptr, "there is no description, or nowhere to put the plan");
    *plan = nullptr;
    *plan = new qt_plan(*desc);
  });
}

int32_t qt_plan_run(qt_plan* plan, void* const* external, char* error, int64_t error_bytes) {
  return guarded(error, error_bytes, [&] {
    qtool::require(plan != nullptr, "there is no plan");
    plan->run(external, nullptr);
  });
}

int32_t qt_plan_run_part(qt_plan* plan, void* const* external, int32_t first, int32_t last, char* error,
                         int64_t error_bytes) {
  return guarded(error, error_bytes, [&] {
    qtool::require(plan != nullptr, "there is no plan");
    plan->run_part(external, first, last);
  });
}

const void* qt_plan_address(const qt_plan* plan, int32_t buffer) {
  return plan != nullptr ? plan->address(buffer) : nullptr;
}

int32_t qt_plan_profile(qt_plan* plan, void* const* external, double* seconds, char* error, int64_t error_bytes) {
  return guarded(error, error_bytes, [&] {
    qtool::require(plan != nullptr && seconds != nullptr, "there is no plan, or nowhere to put the seconds");
    plan->run(external, seconds);
  });
}

const char* qt_plan_kernel(const qt_plan* plan, int32_t op) { return plan != nullptr ? plan->kernel(op) : nullptr; }

int64_t qt_plan_bytes(const qt_plan* plan) { return plan != nullptr ? plan->bytes() : 0; }

void qt_plan_free(qt_plan* plan) { delete plan; }

int32_t qt_abi(void) { return QT_ABI; }

int32_t qt_op_supported(int32_t kind) { return qtool::find_family(kind) != nullptr; }

int32_t qt_isa_supported(int32_t isa) { return qtool::cpu_supports(isa); }

const char* qt_isa_note(int32_t isa) { return qtool::isa_note(isa); }

int64_t qt_struct_bytes(const char* name) {
#define QT_STRUCT(type) \
  if (name != nullptr && std::strcmp(name, #type) == 0) return sizeof(type);
  QT_STRUCT(qt_buffer)
  QT_STRUCT(qt_conv_args)
  QT_STRUCT(qt_linear_dynamic_args)
  QT_STRUCT(qt_binary_args)
  QT_STRUCT(qt_lut_args)
  QT_STRUCT(qt_unary_args)
  QT_STRUCT(qt_pool_args)
  QT_STRUCT(qt_quantize_args)
  QT_STRUCT(qt_copy_args)
  QT_STRUCT(qt_gather_args)
  QT_STRUCT(qt_move_args)
  QT_STRUCT(qt_permute_args)
  QT_STRUCT(qt_affine_args)
  QT_STRUCT(qt_rows_args)
  QT_STRUCT(qt_qrows_args)
  QT_STRUCT(qt_matmul_args)
  QT_STRUCT(qt_recurrent_args)
  QT_STRUCT(qt_ceiling_args)
  QT_STRUCT(qt_tnorm_args)
  QT_STRUCT(qt_tquant_args)
  QT_STRUCT(qt_tclamp_args)
  QT_STRUCT(qt_histogram_args)
  QT_STRUCT(qt_op)
  QT_STRUCT(qt_plan_desc)
#undef QT_STRUCT
  return -1;
}

int64_t qt_kernels(char* text, int64_t bytes) {
  std::string lines;
  for (const qtool::KernelInfo& row : qtool::all_kernels()) {
    lines += std::string(row.family) + " " + qtool::isa_name(row.isa) + " " + row.name + " " + row.tile + "\n";
  }
  fail(QT_OK, lines.c_str(), text, bytes);
  return static_cast<int64_t>(lines.size()) + 1;
}

}  // extern "C"
