#ifndef DDL_MODEL_KERNELS_PHILOX_H_
#define DDL_MODEL_KERNELS_PHILOX_H_

#include <stdint.h>

namespace ddl::kernels {

struct PhiloxBlock {
  uint32_t word[4];
};

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random
// bits as a function of key and counter, so that a random number needs no state and no order. The
// upper half of the 128-bit counter is 0.
inline PhiloxBlock Philox(uint64_t key, uint64_t counter) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  PhiloxBlock c = {{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0}};
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = kMultiplier0 * c.word[0];
    const uint64_t product1 = kMultiplier1 * c.word[2];
    c = {{static_cast<uint32_t>(product1 >> 32) ^ c.word[1] ^ k0, static_cast<uint32_t>(product1),
          static_cast<uint32_t>(product0 >> 32) ^ c.word[3] ^ k1, static_cast<uint32_t>(product0)}};
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return c;
}

// Uniform in [0, 1) with 53 random bits.
inline double PhiloxUniform(uint64_t key, uint64_t counter) {
  const PhiloxBlock block = Philox(key, counter);
  const uint64_t bits = (static_cast<uint64_t>(block.word[0]) << 32) | block.word[1];
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

}  // namespace ddl::kernels

#endif  // DDL_MODEL_KERNELS_PHILOX_H_
