#include "bench/load_generator.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <random>
#include <utility>

#include "base/check.h"

namespace ddl::bench {
namespace {

// So many UNAVAILABLE answers without another one between them mean that the server is gone: a
// closed loop would otherwise spin on failures until its time is over.
constexpr int64_t kUnavailableInSuccession = 64;

constexpr Clock::duration kReportInterval = std::chrono::seconds(1);

std::vector<std::unique_ptr<ddl::v1::InferenceService::Stub>> Stubs(
    const std::vector<std::shared_ptr<grpc::Channel>>& channels) {
  std::vector<std::unique_ptr<ddl::v1::InferenceService::Stub>> stubs;
  stubs.reserve(channels.size());
  for (const auto& channel : channels) stubs.push_back(ddl::v1::InferenceService::NewStub(channel));
  return stubs;
}

}  // namespace

// The warm-up or the measured part of a Run. Guarded by the generator's mutex, but for what is
// constant.
struct LoadGenerator::Phase {
  // Constant.
  bool warming_up = false;
  uint64_t number = 0;  // of Workload::Make
  uint64_t seed = 0;
  std::optional<int32_t> concurrency;
  std::optional<double> rate;
  std::optional<int64_t> requests;
  Clock::time_point begin;
  std::optional<Clock::time_point> last_start;

  uint64_t next_index = 0;
  int64_t in_flight = 0;
  bool arrivals_over = false;  // open loop: no further request
  int64_t unavailable_in_succession = 0;
  int64_t answered = 0;
  int64_t failed = 0;
  int64_t output_tokens = 0;
  LoadResult result;
};

// A request in flight; deletes itself when it has ended.
class LoadGenerator::Call {
 public:
  Call(LoadGenerator* generator, Phase* phase, PlannedRequest planned)
      : generator_(generator), phase_(phase), planned_(std::move(planned)) {
    record_.kind = planned_.kind;
  }
  virtual ~Call() = default;

  // `arrival`: when the request should have been sent, if that was decided before.
  void Start(ddl::v1::InferenceService::Stub& stub, std::optional<Clock::time_point> arrival,
             std::optional<Clock::duration> timeout) {
    const Clock::time_point now = Clock::now();
    record_.start = arrival.value_or(now);
    lag_ = now - record_.start;
    if (timeout.has_value()) {
      context_.set_deadline(std::chrono::system_clock::now() +
                            std::chrono::duration_cast<std::chrono::microseconds>(*timeout));
    }
    Begin(stub);
  }
  void Cancel() { context_.TryCancel(); }

  Phase* phase() { return phase_; }
  Clock::duration lag() const { return lag_; }
  CallRecord& record() { return record_; }

 protected:
  virtual void Begin(ddl::v1::InferenceService::Stub& stub) = 0;

  // The last thing that a call does: it is deleted in here.
  void End(const grpc::Status& status) {
    record_.code = status.error_code();
    record_.message = status.error_message();
    generator_->Finished(this);
  }

  LoadGenerator* const generator_;
  Phase* const phase_;
  const PlannedRequest planned_;
  grpc::ClientContext context_;
  Clock::duration lag_{};
  CallRecord record_;
};

class LoadGenerator::StreamCall final
    : public Call,
      public grpc::ClientReadReactor<ddl::v1::GenerateStreamResponse> {
 public:
  using Call::Call;

  void OnReadDone(bool ok) override {
    read_at_ = Clock::now();
    if (!ok) return;  // OnDone follows
    if (response_.has_delta() && response_.delta().tokens_size() > 0) {
      if (has_token_) {
        record_.gaps.push_back(read_at_ - record_.last_token);
      } else {
        record_.first_token = read_at_;
      }
      has_token_ = true;
      record_.last_token = read_at_;
    } else if (response_.has_end()) {
      record_.input_tokens = response_.end().usage().prompt_tokens();
      record_.output_tokens = response_.end().usage().completion_tokens();
      record_.end = read_at_;
    }
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    if (!status.ok()) record_.end = Clock::now();
    End(status);
  }

 private:
  void Begin(ddl::v1::InferenceService::Stub& stub) override {
    stub.async()->GenerateStream(&context_, &planned_.generate, this);
    StartRead(&response_);
    StartCall();
  }

  ddl::v1::GenerateStreamResponse response_;
  Clock::time_point read_at_;  // when response_ had been read
  bool has_token_ = false;
};

class LoadGenerator::UnaryCall final : public Call {
 public:
  using Call::Call;

 private:
  void Begin(ddl::v1::InferenceService::Stub& stub) override {
    stub.async()->Generate(&context_, &planned_.generate, &response_,
                           [this](const grpc::Status& status) {
                             record_.end = Clock::now();
                             record_.input_tokens = response_.usage().prompt_tokens();
                             record_.output_tokens = response_.usage().completion_tokens();
                             End(status);
                           });
  }

  ddl::v1::GenerateResponse response_;
};

class LoadGenerator::EmbedCall final : public Call {
 public:
  using Call::Call;

 private:
  void Begin(ddl::v1::InferenceService::Stub& stub) override {
    stub.async()->Embed(&context_, &planned_.embed, &response_, [this](const grpc::Status& status) {
      record_.end = Clock::now();
      record_.input_tokens = response_.usage().prompt_tokens();
      record_.inputs = response_.embeddings_size();
      End(status);
    });
  }

  ddl::v1::EmbedResponse response_;
};

LoadGenerator::LoadGenerator(const std::vector<std::shared_ptr<grpc::Channel>>& channels,
                             const Workload* workload, std::optional<Clock::duration> timeout)
    : workload_(workload), timeout_(timeout), stubs_(Stubs(channels)) {
  DDL_CHECK(!stubs_.empty(), "requests need a channel");
}

LoadGenerator::~LoadGenerator() = default;

LoadResult LoadGenerator::Run(const Load& load,
                              const std::function<void(const LoadProgress&)>& report) {
  DDL_CHECK(load.concurrency.has_value() != load.rate.has_value(), "either loop");
  DDL_CHECK(load.requests.has_value() || load.duration.has_value(), "a load has an end");

  Phase warmup;
  warmup.warming_up = true;
  warmup.number = load.phase;
  warmup.requests = load.warmup_requests;
  warmup.concurrency = load.concurrency.value_or(1);
  warmup.begin = Clock::now();
  if (load.warmup_requests > 0) RunPhase(warmup, report);

  Phase measured;
  measured.number = load.phase + 1;
  measured.seed = load.seed;
  measured.concurrency = load.concurrency;
  measured.rate = load.rate;
  measured.requests = load.requests;
  measured.begin = Clock::now();
  if (load.duration.has_value()) measured.last_start = measured.begin + *load.duration;
  if (!warmup.result.unreachable) RunPhase(measured, report);

  LoadResult result = std::move(measured.result);
  result.unreachable = result.unreachable || warmup.result.unreachable;
  Clock::time_point first = Clock::time_point::max(), last = Clock::time_point::min();
  for (const CallRecord& call : result.calls) {
    first = std::min(first, call.start);
    last = std::max(last, call.end);
  }
  if (!result.calls.empty()) result.elapsed = last - first;
  for (const CallRecord& call : warmup.result.calls) {
    if (call.code != grpc::StatusCode::OK) {
      ++result.warmup_failures;
      continue;
    }
    result.warmup_inputs += call.inputs;
    result.warmup_input_tokens += call.input_tokens;
    result.warmup_output_tokens += call.output_tokens;
  }
  const MutexLock lock(mu_);
  result.stopped = stopped_;
  return result;
}

void LoadGenerator::Stop() {
  const MutexLock lock(mu_);
  stopped_ = true;
  // Under the lock, so that no call is deleted meanwhile.
  for (Call* call : in_flight_) call->Cancel();
  changed_.NotifyAll();
}

void LoadGenerator::RunPhase(Phase& phase, const std::function<void(const LoadProgress&)>& report) {
  // Arrivals are sampled apart from the requests, so that a rate changes no prompt.
  std::seed_seq seeds{static_cast<uint32_t>(phase.seed), static_cast<uint32_t>(phase.seed >> 32),
                      static_cast<uint32_t>(phase.number)};
  std::mt19937_64 random(seeds);
  std::exponential_distribution<double> gap(phase.rate.value_or(1.0));
  const auto sample_gap = [&] {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(gap(random)));
  };
  const int32_t first_wave = phase.concurrency.value_or(0);
  for (int32_t i = 0; i < first_wave; ++i) {
    std::optional<uint64_t> index;
    {
      const MutexLock lock(mu_);
      index = Claim(phase);
    }
    if (!index.has_value()) break;
    Send(phase, *index, std::nullopt);
  }

  Clock::time_point arrival = phase.begin + sample_gap();
  Clock::time_point next_report = phase.begin + kReportInterval;
  while (true) {
    std::optional<uint64_t> due;
    std::optional<LoadProgress> progress;
    {
      const MutexLock lock(mu_);
      const bool arriving = phase.rate.has_value() && !phase.arrivals_over;
      const Clock::time_point now = Clock::now();
      if (arriving && now >= arrival) {
        due = Claim(phase);
        phase.arrivals_over = !due.has_value();
      } else if (now >= next_report) {
        progress = ProgressOf(phase);
      } else if (arriving && (stopped_ || phase.result.unreachable)) {
        phase.arrivals_over = true;
      } else if (!arriving && phase.in_flight == 0) {
        return;
      } else {
        const Clock::time_point wake = arriving ? std::min(arrival, next_report) : next_report;
        changed_.WaitUntil(mu_, std::chrono::system_clock::now() + (wake - now));
      }
    }
    if (due.has_value()) {
      Send(phase, *due, arrival);
      arrival += sample_gap();
    }
    if (progress.has_value()) {
      report(*progress);
      next_report += kReportInterval;
    }
  }
}

std::optional<uint64_t> LoadGenerator::Claim(Phase& phase) {
  if (stopped_ || phase.result.unreachable) return std::nullopt;
  if (phase.requests.has_value() && static_cast<int64_t>(phase.next_index) >= *phase.requests) {
    return std::nullopt;
  }
  if (phase.last_start.has_value() && Clock::now() >= *phase.last_start) return std::nullopt;
  ++phase.in_flight;
  return phase.next_index++;
}

void LoadGenerator::Send(Phase& phase, uint64_t index, std::optional<Clock::time_point> arrival) {
  PlannedRequest planned = workload_->Make(phase.number, index);
  Call* call = nullptr;
  switch (planned.kind) {
    case RequestKind::kStream:
      call = new StreamCall(this, &phase, std::move(planned));
      break;
    case RequestKind::kUnary:
      call = new UnaryCall(this, &phase, std::move(planned));
      break;
    case RequestKind::kEmbed:
      call = new EmbedCall(this, &phase, std::move(planned));
      break;
  }
  {
    const MutexLock lock(mu_);
    in_flight_.push_back(call);
    // A call that is cancelled before it starts fails at once, as it should.
    if (stopped_) call->Cancel();
  }
  call->Start(*stubs_[index % stubs_.size()], arrival, timeout_);
}

void LoadGenerator::Finished(Call* call) {
  Phase& phase = *call->phase();
  std::optional<uint64_t> next;
  {
    const MutexLock lock(mu_);
    const auto position = std::find(in_flight_.begin(), in_flight_.end(), call);
    DDL_CHECK(position != in_flight_.end(), "a call ends once");
    *position = in_flight_.back();
    in_flight_.pop_back();

    CallRecord& record = call->record();
    if (stopped_ && record.code == grpc::StatusCode::CANCELLED) {
      ++phase.result.unfinished;
    } else {
      const bool ok = record.code == grpc::StatusCode::OK;
      ++(ok ? phase.answered : phase.failed);
      if (ok) phase.output_tokens += record.output_tokens;
      phase.unavailable_in_succession =
          record.code == grpc::StatusCode::UNAVAILABLE ? phase.unavailable_in_succession + 1 : 0;
      if (phase.unavailable_in_succession == kUnavailableInSuccession) {
        phase.result.unreachable = true;
      }
      phase.result.largest_lag = std::max(phase.result.largest_lag, call->lag());
      phase.result.calls.push_back(std::move(record));
    }
    // Before this one is counted as ended: the phase may be gone once nothing is in flight.
    if (phase.concurrency.has_value()) next = Claim(phase);
    if (!next.has_value()) {
      --phase.in_flight;
      changed_.NotifyAll();
    }
  }
  delete call;
  if (next.has_value()) {
    Send(phase, *next, std::nullopt);
    const MutexLock lock(mu_);
    --phase.in_flight;
    changed_.NotifyAll();
  }
}

LoadProgress LoadGenerator::ProgressOf(const Phase& phase) const {
  return {phase.warming_up, phase.answered,      phase.failed,
          phase.in_flight,  phase.output_tokens, Clock::now() - phase.begin};
}

}  // namespace ddl::bench
