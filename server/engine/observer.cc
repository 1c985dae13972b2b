#include "server/engine/observer.h"

namespace ddl {

std::string_view ToString(EndReason reason) {
  switch (reason) {
    case EndReason::kStop:
      return "stop";
    case EndReason::kEos:
      return "eos";
    case EndReason::kLength:
      return "length";
    case EndReason::kContext:
      return "context";
    case EndReason::kCancel:
      return "cancel";
    case EndReason::kDeadline:
      return "deadline";
    case EndReason::kError:
      return "error";
    case EndReason::kSlowReader:
      return "slow_reader";
  }
  return "";
}

std::string_view ToString(WasteReason reason) {
  switch (reason) {
    case WasteReason::kCancel:
      return "cancel";
    case WasteReason::kDeadline:
      return "deadline";
    case WasteReason::kError:
      return "error";
    case WasteReason::kPreemptRecompute:
      return "preempt_recompute";
  }
  return "";
}

std::string_view ToString(RejectReason reason) {
  switch (reason) {
    case RejectReason::kQueueFull:
      return "queue_full";
    case RejectReason::kTokensFull:
      return "tokens_full";
    case RejectReason::kTooLarge:
      return "too_large";
    case RejectReason::kDraining:
      return "draining";
    case RejectReason::kDeadlineInfeasible:
      return "deadline_infeasible";
    case RejectReason::kLoading:
      return "loading";
    case RejectReason::kRateLimited:
      return "rate_limited";
  }
  return "";
}

}  // namespace ddl
