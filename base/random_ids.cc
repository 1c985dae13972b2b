#include "base/random_ids.h"

#include <random>

#include "absl/strings/str_format.h"

namespace ddl {

uint64_t RandomBits() {
  thread_local std::mt19937_64 generator([] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }());
  return generator();
}

std::string NewRequestId() {
  const uint64_t high = (RandomBits() & ~uint64_t{0xF000}) | 0x4000;
  const uint64_t low = (RandomBits() & ~(uint64_t{3} << 62)) | (uint64_t{1} << 63);
  return absl::StrFormat("%08x-%04x-%04x-%04x-%012x", high >> 32, (high >> 16) & 0xFFFF,
                         high & 0xFFFF, low >> 48, low & 0xFFFFFFFFFFFF);
}

std::string NewSpanId() {
  uint64_t bits = 0;
  while (bits == 0) bits = RandomBits();
  return absl::StrFormat("%016x", bits);
}

}  // namespace ddl
