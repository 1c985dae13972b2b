#include "server/conversion/message_parser.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/dynamic_message.h>
#include <google/protobuf/stubs/common.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_details.h"

namespace ddl {
namespace {

namespace pb = ::google::protobuf;

bool ParseBytes(const grpc::ByteBuffer& bytes, pb::Message* message) {
  grpc::ByteBuffer buffer(bytes);  // shares the slices
  grpc::ProtoBufferReader reader(&buffer);
  return reader.status().ok() && message->ParseFromZeroCopyStream(&reader);
}

void StringsToBytes(pb::DescriptorProto* message) {
  for (pb::DescriptorProto& nested : *message->mutable_nested_type()) StringsToBytes(&nested);
  if (message->options().map_entry()) return;  // bytes cannot be a key
  for (pb::FieldDescriptorProto& field : *message->mutable_field()) {
    if (field.type() == pb::FieldDescriptorProto::TYPE_STRING) {
      field.set_type(pb::FieldDescriptorProto::TYPE_BYTES);
    }
  }
}

// Adds a copy of `file`, and of what it imports, in which strings are bytes: the same on the
// wire, but nothing checks them.
const pb::FileDescriptor* AddLenientFile(const pb::FileDescriptor& file, pb::DescriptorPool* pool) {
  if (const pb::FileDescriptor* added = pool->FindFileByName(file.name())) return added;
  for (int i = 0; i < file.dependency_count(); ++i) AddLenientFile(*file.dependency(i), pool);
  pb::FileDescriptorProto proto;
  file.CopyTo(&proto);
  for (pb::DescriptorProto& message : *proto.mutable_message_type()) StringsToBytes(&message);
  return pool->BuildFile(proto);
}

bool IsUtf8(const std::string& text) {
  return pb::internal::IsStructurallyValidUTF8(text.data(), static_cast<int>(text.size()));
}

// Appends the paths of the fields of `message` that are strings in `original` and hold something
// else than UTF-8.
void FindBadStrings(const pb::Message& message, const pb::Descriptor& original,
                    const std::string& prefix, std::vector<std::string>* paths) {
  const pb::Reflection& reflection = *message.GetReflection();
  std::vector<const pb::FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const pb::FieldDescriptor* field : fields) {
    const pb::FieldDescriptor* declared = original.FindFieldByNumber(field->number());
    const int count = field->is_repeated() ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      const std::string path = field->is_repeated()
                                   ? absl::StrCat(prefix, field->name(), "[", i, "]")
                                   : absl::StrCat(prefix, field->name());
      if (field->message_type() != nullptr) {
        FindBadStrings(field->is_repeated() ? reflection.GetRepeatedMessage(message, field, i)
                                            : reflection.GetMessage(message, field),
                       *declared->message_type(), path + ".", paths);
      } else if (declared->type() == pb::FieldDescriptor::TYPE_STRING) {
        const std::string text = field->is_repeated()
                                     ? reflection.GetRepeatedString(message, field, i)
                                     : reflection.GetString(message, field);
        if (!IsUtf8(text)) paths->push_back(path);
      }
    }
  }
}

}  // namespace

absl::Status ParseRequest(const grpc::ByteBuffer& bytes, int64_t max_bytes, pb::Message* message) {
  if (!bytes.Valid()) return absl::CancelledError("the call was cancelled before its message came");
  if (static_cast<int64_t>(bytes.Length()) > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the message has ", bytes.Length(), " bytes, the most is ", max_bytes));
  }
  if (ParseBytes(bytes, message)) return absl::OkStatus();

  const pb::Descriptor& original = *message->GetDescriptor();
  pb::DescriptorPool pool;
  const pb::FileDescriptor* file = AddLenientFile(*original.file(), &pool);
  if (file != nullptr) {
    pb::DynamicMessageFactory factory;
    const pb::Descriptor* type = pool.FindMessageTypeByName(original.full_name());
    const std::unique_ptr<pb::Message> lenient(factory.GetPrototype(type)->New());
    std::vector<std::string> paths;
    if (ParseBytes(bytes, lenient.get())) FindBadStrings(*lenient, original, "", &paths);
    if (!paths.empty()) return InvalidField(paths.front(), "must be valid UTF-8");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the request is not a ", original.full_name(), " message"));
}

}  // namespace ddl
