// Any bytes as a safetensors file: refused, or tensors whose bytes are all there.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "model/checkpoint/safetensors.h"
#include "tests/fuzz/memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const ddl::MemoryFile file(data, size);
  const auto tensors = ddl::ReadSafetensors(file.path());
  if (!tensors.ok()) return 0;
  unsigned sum = 0;
  for (const auto& [name, view] : tensors->tensors) {
    if (reinterpret_cast<uintptr_t>(view.data) % ddl::StoredTypeSize(view.type) != 0) std::abort();
    for (int64_t i = 0; i < view.num_bytes(); ++i) sum += static_cast<unsigned>(view.data[i]);
  }
  asm volatile("" : : "r"(sum));  // or nothing would be read
  return 0;
}
