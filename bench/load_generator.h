#ifndef DDL_BENCH_LOAD_GENERATOR_H_
#define DDL_BENCH_LOAD_GENERATOR_H_

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "bench/workload.h"
#include "ddl/v1/inference.grpc.pb.h"

namespace ddl::bench {

using Clock = std::chrono::steady_clock;

// One measurement: how requests arrive, and when that ends. Exactly one of concurrency and rate.
struct Load {
  // Closed loop: so many requests are always in flight; the end of one starts the next.
  std::optional<int32_t> concurrency;
  // Open loop: requests a second, at random (Poisson) times that do not wait for answers.
  std::optional<double> rate;
  std::optional<int64_t> requests;  // at most so many
  // No new request after this; those in flight are waited for.
  std::optional<Clock::duration> duration;
  int64_t warmup_requests = 0;  // sent and answered before the clock starts
  // Of Workload::Make, for the warm-up; the measured requests have the next one.
  uint64_t phase = 0;
  uint64_t seed = 0;  // of the arrival times
};

// What happened to one request.
struct CallRecord {
  RequestKind kind = RequestKind::kStream;
  grpc::StatusCode code = grpc::StatusCode::OK;
  std::string message;  // of a failure
  // When it was sent; in the open loop, when it should have been: a client that falls behind
  // must not make the server look quick ("coordinated omission").
  Clock::time_point start;
  Clock::time_point first_token;      // streams: when the message with the first token was read
  Clock::time_point last_token;       // streams: likewise the last
  Clock::time_point end;              // when the answer had been read
  int64_t input_tokens = 0;           // as the server counted them
  int64_t output_tokens = 0;          // likewise
  int64_t inputs = 0;                 // of an embed request
  std::vector<Clock::duration> gaps;  // streams: between messages that carry tokens
};

struct LoadResult {
  std::vector<CallRecord> calls;  // answered or failed, in the order of their ends
  int64_t unfinished = 0;         // given up because of Stop()
  Clock::duration elapsed{};      // from the first request's start to the last one's end
  // Largest time between an arrival and the moment when its request was sent (open loop).
  Clock::duration largest_lag{};
  bool stopped = false;      // by Stop()
  bool unreachable = false;  // ended because the server no longer answers at all

  int64_t warmup_failures = 0;
  int64_t warmup_inputs = 0;         // of embed requests
  int64_t warmup_input_tokens = 0;   // of requests that were answered
  int64_t warmup_output_tokens = 0;  // likewise
};

// What Run has done so far; for a line of progress.
struct LoadProgress {
  bool warming_up = false;
  int64_t answered = 0;
  int64_t failed = 0;
  int64_t in_flight = 0;
  int64_t output_tokens = 0;
  Clock::duration elapsed{};
};

// Sends requests over gRPC's callback API: a time is taken first thing when a message has been
// read, on the thread that read it.
class LoadGenerator {
 public:
  // The requests take the channels in turn. `workload` must outlive this object. A call that
  // takes longer than `timeout` fails with DEADLINE_EXCEEDED; none: no deadline.
  LoadGenerator(const std::vector<std::shared_ptr<grpc::Channel>>& channels,
                const Workload* workload, std::optional<Clock::duration> timeout);
  ~LoadGenerator();

  // Blocks until every request has ended. `report` is called on this thread about once a second.
  // One Run at a time.
  LoadResult Run(const Load& load, const std::function<void(const LoadProgress&)>& report);

  // Cancels what is in flight and ends the present and every later Run early. Any thread.
  void Stop();

 private:
  struct Phase;
  class Call;
  class StreamCall;
  class UnaryCall;
  class EmbedCall;

  // Sends requests until the phase's end and waits for the last of them.
  void RunPhase(Phase& phase, const std::function<void(const LoadProgress&)>& report);
  // Takes the number of the next request, if there is to be one.
  std::optional<uint64_t> Claim(Phase& phase) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Send(Phase& phase, uint64_t index, std::optional<Clock::time_point> arrival);
  void Finished(Call* call);
  LoadProgress ProgressOf(const Phase& phase) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Workload* const workload_;
  const std::optional<Clock::duration> timeout_;
  const std::vector<std::unique_ptr<ddl::v1::InferenceService::Stub>> stubs_;

  Mutex mu_;
  CondVar changed_;  // a request has ended, or Stop was called
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<Call*> in_flight_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ddl::bench

#endif  // DDL_BENCH_LOAD_GENERATOR_H_
