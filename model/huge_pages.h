#ifndef DDL_MODEL_HUGE_PAGES_H_
#define DDL_MODEL_HUGE_PAGES_H_

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>

namespace ddl {

// Memory for the weights of a model, which the kernel is asked to back with huge pages. Weights are
// read once a step, and are then limited by memory's bandwidth, and not by the processor's look-ups
// of pages and its prefetching, which stops at the end of each: of 4 KiB, that halved a step's
// speed. Tensors lie one after another in regions of many huge pages: most are no whole number of
// them, and on their own a quarter of a small model would lie on ordinary pages.
//
// Used by one thread at a time. Tensors may outlive it; a region lives as long as one of its
// tensors.
class HugePages {
 public:
  // A tensor on the CPU, not initialised, on a cache line of its own. Memory is taken as pages are
  // first written: no more than a huge page for each region beyond what the tensors need.
  at::Tensor Empty(at::IntArrayRef sizes, at::ScalarType type);

 private:
  std::shared_ptr<std::byte> region_;  // the last one
  size_t used_ = 0;                    // bytes of it
  size_t size_ = 0;
};

}  // namespace ddl

#endif  // DDL_MODEL_HUGE_PAGES_H_
