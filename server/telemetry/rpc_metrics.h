#ifndef DDL_SERVER_TELEMETRY_RPC_METRICS_H_
#define DDL_SERVER_TELEMETRY_RPC_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <array>
#include <atomic>
#include <string>
#include <string_view>
#include <utility>

#include "server/engine/observer.h"
#include "server/telemetry/metric_families.h"
#include "server/telemetry/rpc_labels.h"

namespace ddl {

// Calls of one model name. A status code's series appears with its first call; that of OK is
// there from the start for the names served.
class RpcMetrics {
 public:
  struct Families {
    prometheus::Family<prometheus::Counter>& requests;
    prometheus::Family<prometheus::Gauge>& in_flight;
    prometheus::Family<prometheus::Histogram>& duration;
    prometheus::Family<prometheus::Counter>& rejections;
    prometheus::Family<prometheus::Histogram>& embed_inputs;
  };

  RpcMetrics(const Families& families, std::string model, bool served)
      : families_(families), model_(std::move(model)) {
    if (!served) return;
    for (int method = 0; method < kNumMethods; ++method) {
      InFlight(method);
      Of(method, 0);
    }
    for (const RejectReason reason :
         {RejectReason::kQueueFull, RejectReason::kTokensFull, RejectReason::kDeadlineInfeasible,
          RejectReason::kTooLarge, RejectReason::kDraining, RejectReason::kLoading,
          RejectReason::kRateLimited}) {
      Rejections(reason);
    }
    EmbedInputs();
  }

  prometheus::Gauge& InFlight(int method) {
    return Once(in_flight_[method], [&]() -> prometheus::Gauge& {
      return families_.in_flight.Add(
          {{"method", Text(MethodName(static_cast<Method>(method)))}, {"model", model_}});
    });
  }

  struct Answers {
    prometheus::Counter& count;
    prometheus::Histogram& duration;
  };
  Answers Of(int method, int code) {
    const auto labels = [&]() -> prometheus::Labels {
      return {{"method", Text(MethodName(static_cast<Method>(method)))},
              {"code", Text(StatusCodeName(code))},
              {"model", model_}};
    };
    return {Once(requests_[method][code],
                 [&]() -> prometheus::Counter& { return families_.requests.Add(labels()); }),
            Once(durations_[method][code], [&]() -> prometheus::Histogram& {
              return families_.duration.Add(labels(), LongSeconds());
            })};
  }

  prometheus::Counter& Rejections(RejectReason reason) {
    return families_.rejections.Add({{"reason", Text(ToString(reason))}, {"model", model_}});
  }

  prometheus::Histogram& EmbedInputs() {
    return families_.embed_inputs.Add({{"model", model_}}, BatchBuckets());
  }

 private:
  static std::string Text(std::string_view text) { return std::string(text); }

  // The series in `slot`, made by `make` when first needed. Two threads may both make it:
  // Family::Add gives them the same one.
  template <typename Metric, typename Make>
  static Metric& Once(std::atomic<Metric*>& slot, const Make& make) {
    Metric* metric = slot.load(std::memory_order_acquire);
    if (metric == nullptr) {
      metric = &make();
      slot.store(metric, std::memory_order_release);
    }
    return *metric;
  }

  const Families families_;
  const std::string model_;
  std::array<std::atomic<prometheus::Gauge*>, kNumMethods> in_flight_ = {};
  std::array<std::array<std::atomic<prometheus::Counter*>, kNumStatusCodes>, kNumMethods>
      requests_ = {};
  std::array<std::array<std::atomic<prometheus::Histogram*>, kNumStatusCodes>, kNumMethods>
      durations_ = {};
};

}  // namespace ddl

#endif  // DDL_SERVER_TELEMETRY_RPC_METRICS_H_
