#ifndef DDL_SERVER_SERVER_H_
#define DDL_SERVER_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/file_watcher.h"
#include "base/mutex.h"
#include "server/access/api_keys.h"
#include "server/config.h"
#include "server/models/compute_thread.h"
#include "server/models/model_loader.h"
#include "server/models/served_models.h"
#include "server/net/connection_acceptor.h"
#include "server/net/http_server.h"
#include "server/rpc/active_calls.h"
#include "server/rpc/inference_service.h"
#include "server/rpc/model_service.h"
#include "server/rpc/reply_thread.h"
#include "server/rpc/rpc_context.h"
#include "server/shutdown_deadline.h"
#include "server/step_watchdog.h"
#include "server/telemetry/metrics.h"
#include "server/telemetry/request_log.h"

namespace ddl {

// For a stop that cannot be finished, because a step does not come back or a call does not end.
struct LastResort {
  // From when everything was asked to end.
  absl::Duration grace = absl::Seconds(5);
  // Told what is stuck, in one line, on a thread of its own. Meant to end the process: what Serve
  // waits for does not come.
  std::function<void(const std::string& what)> end = [](const std::string& /*what*/) {};
};

// The whole server: gRPC with both services, health and reflection; the metrics page; the models
// and their engines. One life: Listen, Serve, destruction; or Check, destruction.
class Server {
 public:
  // `now` is the clock of the engines, and of how long their steps run; any thread may call it.
  Server(const ServerConfig& config, ModelLoader loader,
         std::function<absl::Time()> now = absl::Now, LastResort last_resort = {});
  ~Server();

  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Listens on both addresses. Health says NOT_SERVING; calls are answered, most of them with
  // UNAVAILABLE. UNAVAILABLE, in one line, when an address cannot be listened on; INVALID_ARGUMENT
  // when the files for TLS or the file of keys cannot serve.
  absl::Status Listen();
  int grpc_port() const { return grpc_port_; }        // after Listen
  int metrics_port() const { return metrics_port_; }  // after Listen

  // Loads the models and serves until RequestStop. The loader's or engine's failure, when a model
  // cannot be served; UNAVAILABLE, without a drain, when the device that computes is lost. When
  // stopped while loading it returns at once, with still_loading().
  absl::Status Serve();

  // Does what a start does before it serves anyone, but listens on nothing: reads the files for
  // TLS, loads the models and warms them up. A line for each model, or the failure that Listen or
  // Serve would return.
  absl::StatusOr<std::vector<std::string>> Check();

  // Ends Serve, from any thread, at any time after construction. The first call drains: health
  // says NOT_SERVING, calls are accepted for drain_delay, and what runs may finish within
  // drain_timeout. The second ends everything at once. Where that does not come to an end, the last
  // resort does.
  void RequestStop();

  // A loader that cannot be interrupted is still at work; the destructor would wait for it.
  bool still_loading() const { return loading_; }

 private:
  struct LoadResult {
    bool done = false;
    absl::Status status;
  };

  std::map<std::string, HttpServer::Handler> Pages();
  // Puts the file's keys in force, and again whenever it changes.
  absl::Status WatchApiKeys();

  // The first of Listen and Check: the files that flags name, but for the checkpoints.
  absl::Status ReadFiles();
  // On the loading thread, or that of Check.
  void LoadModels();
  absl::Status LoadModel(const ModelSource& source, ServedModel* model);

  // Waits until `deadline`, the given number of RequestStop calls or the device's loss. False: the
  // deadline came.
  bool WaitForStops(int stops, absl::Time deadline);
  absl::Status DeviceStatus();
  void SetServing(bool serving);
  // Health, the metric and /readyz.
  void SetReady(bool ready);
  // Serves until the first RequestStop or the device's loss; not ready meanwhile for as long as a
  // step stalls.
  void WatchSteps();
  // By model, how long its present step has been running; zero for one that is not ready.
  std::vector<absl::Duration> RunningSteps() const;
  void Drain();
  void EndAtOnce();
  void EndCalls();
  void StopEngines();
  // From now on the end has to come within the last resort's grace.
  void ExpectEnd();
  // Why it has not come, in one line.
  std::string WhatIsStuck() const;

  // Constant after construction.
  const ServerConfig config_;
  const ModelLoader loader_;
  const std::function<absl::Time()> now_;
  const LastResort last_resort_;

  ServerState state_;
  Metrics metrics_;                              // observes the models' engines
  std::optional<ComputeThread> compute_thread_;  // of several models; their engines use it
  ServedModels models_;
  ActiveCalls active_calls_;
  ApiKeys api_keys_;
  RequestLog request_log_;
  ReplyThread replies_;  // may still answer, which logs, when it ends
  const RpcContext rpc_;
  InferenceService inference_service_;
  ModelService model_service_;
  StepWatchdog watchdog_;  // looked with by the thread that serves

  // Constant after Listen.
  std::shared_ptr<grpc::ServerCredentials> credentials_;
  int grpc_port_ = 0;
  int metrics_port_ = 0;
  std::unique_ptr<ConnectionAcceptor> acceptor_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> connections_;  // gRPC's end
  std::unique_ptr<grpc::Server> grpc_server_;
  std::unique_ptr<HttpServer> http_server_;  // shows metrics_, acceptor_, state_
  std::unique_ptr<FileWatcher> api_keys_watcher_;

  std::optional<ShutdownDeadline> shutdown_deadline_;  // of the thread that serves
  std::thread load_thread_;
  std::atomic<bool> loading_ = false;
  std::atomic<bool> abandon_loading_ = false;

  Mutex mu_;
  CondVar changed_;
  int stops_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status device_ ABSL_GUARDED_BY(mu_);  // not OK once it is lost
  LoadResult load_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ddl

#endif  // DDL_SERVER_SERVER_H_
