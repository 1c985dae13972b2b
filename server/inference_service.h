#ifndef DDL_SERVER_INFERENCE_SERVICE_H_
#define DDL_SERVER_INFERENCE_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include "ddl/v1/inference.grpc.pb.h"
#include "server/rpc.h"

namespace ddl {

// ddl.v1.InferenceService. Calls are parsed, checked and tokenized on gRPC's threads; the engine
// brings their results to reactors, which answer from the reply thread.
class InferenceService final
    : public v1::InferenceService::WithRawCallbackMethod_Generate<
          v1::InferenceService::WithRawCallbackMethod_GenerateStream<
              v1::InferenceService::WithRawCallbackMethod_Embed<
                  v1::InferenceService::WithRawCallbackMethod_Score<
                      v1::InferenceService::WithRawCallbackMethod_Tokenize<
                          v1::InferenceService::WithRawCallbackMethod_Detokenize<
                              v1::InferenceService::Service>>>>>> {
 public:
  explicit InferenceService(const RpcSurroundings& surroundings) : surroundings_(surroundings) {}

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateStream(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Embed(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;

 private:
  const RpcSurroundings surroundings_;
};

}  // namespace ddl

#endif  // DDL_SERVER_INFERENCE_SERVICE_H_
