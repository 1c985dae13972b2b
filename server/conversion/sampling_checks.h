#ifndef DDL_SERVER_CONVERSION_SAMPLING_CHECKS_H_
#define DDL_SERVER_CONVERSION_SAMPLING_CHECKS_H_

#include <cstdint>

#include "ddl/v1/inference.pb.h"
#include "model/sampler.h"
#include "server/conversion/api_calls.h"
#include "server/conversion/field_errors.h"
#include "server/engine/request.h"

// How a Generate's tokens are sampled, and when it stops: every number that is out of its range
// adds a violation.

namespace ddl {

// Without a seed a random one.
SamplingParams ToSampling(const v1::SamplingParams& proto, int64_t vocab_size, FieldErrors* errors);
// n.
int32_t ToNumCompletions(const v1::SamplingParams& proto, FieldErrors* errors);
// -1 when unset.
int32_t ToLogprobs(const char* field, bool is_set, uint32_t logprobs, FieldErrors* errors);
StoppingParams ToStopping(const v1::StoppingParams& proto, const RequestLimits& limits,
                          FieldErrors* errors);

}  // namespace ddl

#endif  // DDL_SERVER_CONVERSION_SAMPLING_CHECKS_H_
