#include "server/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "ddl/v1/inference.grpc.pb.h"
#include "server/build_info.h"
#include "server/models/model_start.h"
#include "server/net/connection_options.h"
#include "server/net/tls.h"

namespace ddl {
namespace {

// How long answers that are ready may take to reach clients once the drain is over.
constexpr absl::Duration kFlushTimeout = absl::Seconds(1);
// How often the watchdog looks at the steps.
constexpr absl::Duration kWatchInterval = absl::Milliseconds(200);

std::vector<std::string> Names(const std::vector<ModelSource>& sources) {
  std::vector<std::string> names;
  for (const ModelSource& source : sources) names.push_back(source.name);
  return names;
}

// "HOST:PORT" with the port that is really listened on.
std::string WithPort(const std::string& address, int port) {
  return absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
}

absl::Status CannotListen(absl::string_view flag, const std::string& address) {
  return absl::UnavailableError(
      absl::StrCat("cannot listen on --", flag, "=", address,
                   ": it is in use, not allowed or not an address of this machine"));
}

}  // namespace

Server::Server(const ServerConfig& config, ModelLoader loader, std::function<absl::Time()> now,
               LastResort last_resort)
    : config_(config),
      loader_(std::move(loader)),
      now_(std::move(now)),
      last_resort_(std::move(last_resort)),
      metrics_(GetBuildInfo(), Names(config.models)),
      models_(Names(config.models)),
      request_log_(config.log_format),
      rpc_{models_,
           metrics_,
           active_calls_,
           replies_,
           api_keys_,
           request_log_,
           config_.max_message_bytes},
      inference_service_(rpc_),
      model_service_(rpc_, state_),
      watchdog_(config.step_timeout, config.models.size()) {
  if (config_.models.size() > 1) compute_thread_.emplace();
}

Server::~Server() {
  abandon_loading_ = true;
  if (load_thread_.joinable()) load_thread_.join();
  if (grpc_server_ != nullptr) {
    StopEngines();
    acceptor_->Stop();
    grpc_server_->Shutdown(std::chrono::system_clock::now());
    grpc_server_->Wait();
  }
}

absl::Status Server::ReadFiles() {
  absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> credentials =
      MakeServerCredentials(config_.tls, config_.tls_reload_interval);
  if (!credentials.ok()) return credentials.status();
  credentials_ = *std::move(credentials);
  return WatchApiKeys();
}

absl::StatusOr<std::vector<std::string>> Server::Check() {
  if (absl::Status status = ReadFiles(); !status.ok()) return status;
  LoadModels();
  {
    const MutexLock lock(mu_);
    if (!load_.status.ok()) return load_.status;
  }
  std::vector<std::string> lines;
  for (const auto& model : models_.all()) lines.push_back(Summary(*model->ready()));
  return lines;
}

absl::Status Server::Listen() {
  if (absl::Status status = ReadFiles(); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> acceptor = ConnectionAcceptor::Listen(
      config_.grpc_address, {.max_connections = config_.connections.max_connections,
                             .per_second = config_.connections.max_connection_rate});
  if (!acceptor.ok()) return CannotListen("grpc_address", config_.grpc_address);
  acceptor_ = *std::move(acceptor);
  grpc_port_ = acceptor_->port();
  RaiseFileLimit(config_.connections.max_connections);
  absl::StatusOr<std::unique_ptr<HttpServer>> http_server =
      HttpServer::Start(config_.metrics_address, Pages());
  if (!http_server.ok()) {
    return CannotListen("metrics_address", config_.metrics_address);
  }
  http_server_ = *std::move(http_server);
  metrics_port_ = http_server_->port();

  grpc::EnableDefaultHealthCheckService(true);
  if (config_.reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  ApplyConnectionOptions(config_.connections, &builder);
  using Connections = grpc::ServerBuilder::experimental_type::ExternalConnectionType;
  connections_ =
      builder.experimental().AddExternalConnectionAcceptor(Connections::FROM_FD, credentials_);
  builder.RegisterService(&inference_service_);
  builder.RegisterService(&model_service_);
  grpc_server_ = builder.BuildAndStart();
  if (grpc_server_ == nullptr) return absl::UnavailableError("gRPC cannot be started");
  SetServing(false);
  acceptor_->Start(
      {.on_connection =
           [this](int listener, int connection) {
             grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters parameters;
             parameters.listener_fd = listener;
             parameters.fd = connection;
             connections_->HandleNewConnection(&parameters);
           },
       .on_refused = [this](ConnectionRefusal refusal) { metrics_.OnConnectionRefused(refusal); },
       .on_delayed = [this] { metrics_.OnConnectionDelayed(); }});
  spdlog::info("listening grpc_address={} metrics_address={}",
               WithPort(config_.grpc_address, grpc_port_),
               WithPort(config_.metrics_address, metrics_port_));
  return absl::OkStatus();
}

absl::Status Server::WatchApiKeys() {
  const std::string& path = config_.api_keys_file;
  if (path.empty()) return absl::OkStatus();
  const absl::StatusOr<std::string> content = ReadFile(path);
  absl::StatusOr<std::vector<ApiKey>> keys =
      content.ok() ? ParseApiKeys(*content, path) : content.status();
  if (!keys.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--api_keys_file: ", keys.status().message()));
  }
  spdlog::info("{} API keys in force", keys->size());
  api_keys_.Replace(*std::move(keys));
  api_keys_watcher_ = std::make_unique<FileWatcher>(
      path, *content, config_.api_keys_reload_interval, [this, path](const std::string& changed) {
        absl::StatusOr<std::vector<ApiKey>> others = ParseApiKeys(changed, path);
        metrics_.OnApiKeysReload(others.ok());
        if (!others.ok()) {
          spdlog::warn("the API keys stay as they were: {}",
                       std::string(others.status().message()));
          return;
        }
        spdlog::info("{} API keys in force", others->size());
        api_keys_.Replace(*std::move(others));
      });
  return absl::OkStatus();
}

std::map<std::string, HttpServer::Handler> Server::Pages() {
  // Kubelet's gRPC probes speak no TLS: these say the same to its HTTP probes.
  return {{"/metrics",
           [this] {
             metrics_.SetConnections(acceptor_->NumConnections());
             return HttpServer::Page{.content_type = "text/plain; version=0.0.4; charset=utf-8",
                                     .body = metrics_.Text()};
           }},
          {"/livez",
           [this] {
             // A warm-up may take any time, and holds up the steps of models that are loaded.
             const bool loaded = state_.ready || state_.stalled || state_.draining;
             const std::vector<absl::Duration> steps = RunningSteps();
             if (loaded && watchdog_.IsHopeless(*std::ranges::max_element(steps))) {
               return HttpServer::Page{.code = 503, .body = "stalled\n"};
             }
             return HttpServer::Page{.body = "alive\n"};
           }},
          {"/readyz", [this] {
             if (state_.ready) return HttpServer::Page{.body = "ready\n"};
             return HttpServer::Page{.code = 503,
                                     .body = state_.draining  ? "draining\n"
                                             : state_.stalled ? "stalled\n"
                                                              : "loading\n"};
           }}};
}

absl::Status Server::Serve() {
  loading_ = true;
  load_thread_ = std::thread([this] { LoadModels(); });
  absl::Status failure;
  bool stopped = false;
  {
    const MutexLock lock(mu_);
    while (!load_.done && stops_ == 0) changed_.Wait(mu_);
    failure = load_.status;
    stopped = stops_ > 0;
  }
  abandon_loading_ = true;  // loaded, failed, or nobody waits for it any more
  if (stopped) spdlog::info("stopped while loading");
  if (failure.ok() && !stopped) {
    SetReady(true);
    WatchSteps();
    if (DeviceStatus().ok()) {
      Drain();
    } else {
      EndAtOnce();
    }
    failure = DeviceStatus();  // it may also be lost in the drain
  }
  ExpectEnd();
  models_.StopAdmission();
  StopEngines();
  acceptor_->Stop();
  grpc_server_->Shutdown(std::chrono::system_clock::now());
  grpc_server_->Wait();
  shutdown_deadline_.reset();
  return failure;
}

void Server::RequestStop() {
  const MutexLock lock(mu_);
  ++stops_;
  changed_.NotifyAll();
  if (stops_ > 1) active_calls_.Interrupt();
}

void Server::LoadModels() {
  absl::Status status;
  for (size_t i = 0; i < config_.models.size() && status.ok(); ++i) {
    ServedModel* model = models_.all()[i].get();
    status = LoadModel(config_.models[i], model);
    if (!status.ok()) model->SetFailed(std::string(status.message()));
  }
  const MutexLock lock(mu_);
  load_ = {.done = true, .status = status};
  loading_ = false;
  changed_.NotifyAll();
}

absl::Status Server::LoadModel(const ModelSource& source, ServedModel* model) {
  const absl::Time start = absl::Now();
  spdlog::info("loading model={} folder={}", source.name, source.folder.string());
  absl::StatusOr<LoadedModel> loaded = loader_(source, config_, abandon_loading_);
  if (!loaded.ok()) return loaded.status();

  model->SetWarmingUp();
  EngineOptions options = config_.engine;
  options.on_delivered = [this] { replies_.Wake(); };
  options.on_device_lost = [this](const absl::Status& status) {
    const MutexLock lock(mu_);
    device_.Update(status);
    changed_.NotifyAll();
  };
  if (compute_thread_.has_value()) {
    loaded->runner = RunOn(&*compute_thread_, std::move(loaded->runner));
  }
  absl::StatusOr<std::unique_ptr<ReadyModel>> ready =
      WarmUpAndStart(source.name, *std::move(loaded), config_, std::move(options), &metrics_, now_);
  if (!ready.ok()) return ready.status();
  model->SetReady(*std::move(ready));
  spdlog::info("ready model={} version={} in {:.1f}s", source.name,
               model->ready()->identity.version, absl::ToDoubleSeconds(absl::Now() - start));
  return absl::OkStatus();
}

bool Server::WaitForStops(int stops, absl::Time deadline) {
  const MutexLock lock(mu_);
  while (stops_ < stops && device_.ok() && absl::Now() < deadline) {
    changed_.WaitUntil(mu_, absl::ToChronoTime(deadline));
  }
  return stops_ >= stops || !device_.ok();
}

void Server::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = grpc_server_->GetHealthCheckService();
  // The whole server last: who has heard of it hears the same of each service.
  for (const char* service :
       {v1::InferenceService::service_full_name(), v1::ModelService::service_full_name(), ""}) {
    health->SetServingStatus(service, serving);
  }
}

absl::Status Server::DeviceStatus() {
  const MutexLock lock(mu_);
  return device_;
}

void Server::SetReady(bool ready) {
  state_.ready = ready;
  metrics_.SetReady(ready);
  SetServing(ready);
}

std::vector<absl::Duration> Server::RunningSteps() const {
  std::vector<absl::Duration> steps;
  for (const auto& model : models_.all()) {
    const ReadyModel* ready = model->ready();
    steps.push_back(ready == nullptr ? absl::ZeroDuration() : ready->engine->running_step());
  }
  return steps;
}

void Server::WatchSteps() {
  while (!WaitForStops(1, absl::Now() + kWatchInterval)) {
    const std::vector<absl::Duration> steps = RunningSteps();
    const std::vector<StepWatchdog::Change> changes = watchdog_.Look(steps);
    for (const StepWatchdog::Change& change : changes) {
      const std::string& model = models_.all()[change.model]->name();
      if (change.stalled) {
        metrics_.OnStepTimeout(model);
        spdlog::error("stalled model={}: a step has been running for {:.1f}s, --step_timeout={}",
                      model, absl::ToDoubleSeconds(steps[change.model]),
                      absl::FormatDuration(config_.step_timeout));
      } else {
        spdlog::warn("no longer stalled model={}: the step has ended", model);
      }
    }
    if (changes.empty()) continue;
    state_.stalled = watchdog_.stalled();
    SetReady(!state_.stalled);
  }
}

void Server::Drain() {
  state_.draining = true;
  SetReady(false);
  metrics_.SetDraining(true);
  spdlog::info("draining: accepting for {}, then up to {} for running calls",
               absl::FormatDuration(config_.drain_delay),
               absl::FormatDuration(config_.drain_timeout));
  const absl::Time start = absl::Now();
  WaitForStops(2, start + config_.drain_delay);

  models_.StopAdmission();
  active_calls_.StopCounting();
  const bool finished = active_calls_.WaitUntilNone(absl::Now() + config_.drain_timeout);
  spdlog::info("{} after {:.1f}s", finished ? "drained" : "ending the calls that still run",
               absl::ToDoubleSeconds(absl::Now() - start));
  if (!finished) EndCalls();
}

void Server::EndAtOnce() {
  SetReady(false);
  models_.StopAdmission();
  active_calls_.StopCounting();
  EndCalls();
}

// Clients whose calls are cut short hear so in a status, if they listen.
void Server::EndCalls() {
  ExpectEnd();
  StopEngines();
  active_calls_.WaitUntilNone(absl::Now() + kFlushTimeout);
}

void Server::ExpectEnd() {
  if (shutdown_deadline_.has_value()) return;
  shutdown_deadline_.emplace(last_resort_.grace, [this] { last_resort_.end(WhatIsStuck()); });
}

std::string Server::WhatIsStuck() const {
  const std::vector<absl::Duration> steps = RunningSteps();
  for (size_t i = 0; i < steps.size(); ++i) {
    if (steps[i] == absl::ZeroDuration()) continue;
    return absl::StrFormat("the stop is stuck: a step of model=%s has been running for %.1fs",
                           models_.all()[i]->name(), absl::ToDoubleSeconds(steps[i]));
  }
  return "the stop is stuck: no step runs, but calls have not ended";
}

void Server::StopEngines() {
  for (const auto& model : models_.all()) {
    if (const ReadyModel* ready = model->ready()) ready->engine->Stop();
  }
}

}  // namespace ddl
