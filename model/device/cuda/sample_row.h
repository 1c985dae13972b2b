#ifndef DDL_MODEL_DEVICE_CUDA_SAMPLE_ROW_H_
#define DDL_MODEL_DEVICE_CUDA_SAMPLE_ROW_H_

#include <cstdint>

#include "model/kernels/cuda/cuda_kernels.h"
#include "model/sampler.h"

namespace ddl {

// A row's sampling as the kernel takes it, without its arrays, which have yet to go to the device.
inline kernels::cuda::SampleRow SampleRowOf(const SamplingParams& params, uint64_t index,
                                            TokenId vocab_size) {
  kernels::cuda::SampleRow row;
  row.temperature = params.temperature;
  row.top_k = params.top_k;
  row.top_p = params.top_p;
  row.min_p = params.min_p;
  row.repetition_penalty = params.repetition_penalty;
  row.frequency_penalty = params.frequency_penalty;
  row.presence_penalty = params.presence_penalty;
  row.vocab_size = vocab_size;
  row.seed = params.seed;
  row.index = index;
  return row;
}

}  // namespace ddl

#endif  // DDL_MODEL_DEVICE_CUDA_SAMPLE_ROW_H_
