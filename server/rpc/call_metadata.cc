#include "server/rpc/call_metadata.h"

#include <algorithm>
#include <string_view>

#include "base/random_ids.h"
#include "server/conversion/api_calls.h"

namespace ddl {
namespace {

constexpr char kRequestId[] = "x-request-id";
constexpr char kTraceparent[] = "traceparent";
constexpr char kAuthorization[] = "authorization";

// Of the metadata `name`; empty when there is none, or more than one.
std::string_view Find(const grpc::CallbackServerContext& context, const char* name) {
  const auto [first, last] = context.client_metadata().equal_range(name);
  if (first == last || std::next(first) != last) return {};
  return {first->second.data(), first->second.size()};
}

// gRPC ends the process over metadata that HTTP/2 does not allow.
bool FitsMetadata(std::string_view text) {
  return !text.empty() && text.size() <= kMaxRequestIdBytes &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
}

}  // namespace

CallMetadata ReadCallMetadata(const grpc::CallbackServerContext& context, const ApiKeys& keys) {
  const std::string_view id = Find(context, kRequestId);
  return {.request_id = FitsMetadata(id) ? std::string(id) : NewRequestId(),
          .trace = ParseTraceparent(Find(context, kTraceparent)),
          .peer = context.peer(),
          .caller = keys.Authenticate(Find(context, kAuthorization))};
}

void SendIds(const CallMetadata& metadata, AnswerPart part, grpc::CallbackServerContext* context) {
  const auto add = [part, context](const char* name, const std::string& value) {
    if (part == AnswerPart::kInitial) {
      context->AddInitialMetadata(name, value);
    } else {
      context->AddTrailingMetadata(name, value);
    }
  };
  if (FitsMetadata(metadata.request_id)) add(kRequestId, metadata.request_id);
  if (metadata.trace.has_value()) add(kTraceparent, FormatTraceparent(*metadata.trace));
}

}  // namespace ddl
