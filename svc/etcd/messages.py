"""etcd's messages: those, and those of their fields, that we use, as its public API numbers them (api/etcdserverpb/rpc.proto and
api/mvccpb/kv.proto).

The classes are made at import from the table below. Code that protoc generates is tied to a version of protobuf: an older one
refuses it, and a later one warns of it. It also enters its names into the one pool of the process, where etcd's generated code
of somebody else may stand already. A table needs no tool to be changed, works with every protobuf, and has a pool of its own.

Fields that are not in the table are skipped when a message is read. Enumerations are whole numbers here, and strings
that we send are bytes, which travel in the same way: an environment may hold any.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from svc.etcd.errors import CHECK_ENDPOINT, Trouble

PUT, DELETE = 0, 1
"""`Event.type`."""

EQUAL, MOD = 0, 2
"""`Compare.result` and `Compare.target`."""

# name: "field number type", one a line. A type with * is repeated; a field with ? says whether it is there (in etcd's API it is
# one of several), and is sent even if it is 0.
_MESSAGES = {
    "KeyValue": "key 1 bytes, mod_revision 3 int64, value 5 bytes, lease 6 int64",
    "Event": "type 1 int32, kv 2 KeyValue",
    "ResponseHeader": "revision 3 int64",
    "RangeRequest": "key 1 bytes, range_end 2 bytes, revision 4 int64, serializable 7 bool",
    "RangeResponse": "header 1 ResponseHeader, kvs 2 KeyValue*",
    "PutRequest": "key 1 bytes, value 2 bytes, lease 3 int64",
    "PutResponse": "header 1 ResponseHeader",
    "DeleteRangeRequest": "key 1 bytes, range_end 2 bytes",
    "DeleteRangeResponse": "header 1 ResponseHeader",
    "RequestOp": "request_range 1 RangeRequest, request_put 2 PutRequest, request_delete_range 3 DeleteRangeRequest",
    "ResponseOp": "response_range 1 RangeResponse, response_put 2 PutResponse, response_delete_range 3 DeleteRangeResponse",
    "Compare": "result 1 int32, target 2 int32, key 3 bytes, mod_revision? 6 int64",
    "TxnRequest": "compare 1 Compare*, success 2 RequestOp*, failure 3 RequestOp*",
    "TxnResponse": "header 1 ResponseHeader, succeeded 2 bool, responses 3 ResponseOp*",
    "WatchCreateRequest": "key 1 bytes, range_end 2 bytes, start_revision 3 int64",
    "WatchRequest": "create_request 1 WatchCreateRequest",
    "WatchResponse": "header 1 ResponseHeader, created 3 bool, canceled 4 bool, compact_revision 5 int64, "
    "cancel_reason 6 string, events 11 Event*",
    "LeaseGrantRequest": "TTL 1 int64",
    "LeaseGrantResponse": "header 1 ResponseHeader, ID 2 int64, TTL 3 int64",
    "LeaseRevokeRequest": "ID 1 int64",
    "LeaseRevokeResponse": "header 1 ResponseHeader",
    "LeaseKeepAliveRequest": "ID 1 int64",
    "LeaseKeepAliveResponse": "header 1 ResponseHeader, ID 2 int64, TTL 3 int64",
    "LeaseTimeToLiveRequest": "ID 1 int64",
    "LeaseTimeToLiveResponse": "header 1 ResponseHeader, TTL 3 int64",
    "AuthenticateRequest": "name 1 bytes, password 2 bytes",
    "AuthenticateResponse": "header 1 ResponseHeader, token 2 string",
}


def _made() -> dict[str, Any]:
    """A class for each message, by name."""
    kind = descriptor_pb2.FieldDescriptorProto
    scalars = {
        "bytes": kind.TYPE_BYTES,
        "string": kind.TYPE_STRING,
        "bool": kind.TYPE_BOOL,
        "int32": kind.TYPE_INT32,
        "int64": kind.TYPE_INT64,
    }
    file = descriptor_pb2.FileDescriptorProto(name="svc/etcd.proto", package="svc.etcd", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields.split(", "):
            title, number, type_name = field.split()
            made = message.field.add(name=title.rstrip("?"), number=int(number))
            made.label = kind.LABEL_REPEATED if type_name.endswith("*") else kind.LABEL_OPTIONAL
            if title.endswith("?"):
                made.oneof_index = len(message.oneof_decl)
                message.oneof_decl.add(name=f"is_{made.name}")
            if (type_name := type_name.rstrip("*")) in scalars:
                made.type = scalars[type_name]
            else:
                made.type, made.type_name = kind.TYPE_MESSAGE, f".{file.package}.{type_name}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _made()


def read(name: str, data: bytes) -> Any:
    """A message of this name. Raises `Trouble`."""
    try:
        return _CLASSES[name].FromString(data)
    except DecodeError:
        raise Trouble("the answer is no message of etcd's", CHECK_ENDPOINT) from None


def __getattr__(name: str) -> Any:
    """The messages are this module's attributes."""
    try:
        return _CLASSES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
