// Rows of a table by number: embeddings.
#pragma once

#include <memory>

#include "core/op.h"

namespace qtool {

// `kernel` is the name to go by: rows are copied as bytes, on every CPU alike.
std::unique_ptr<Op> make_gather(const qt_gather_args& args, const char* kernel);

}  // namespace qtool
