//! Messages of Arrow Flight that arrow-flight has no types for yet: the options of a session, and an ingest's result
//! with its receipt. Field numbers are those of Flight.proto.

use std::collections::HashMap;

/// The value of an option; none at all clears it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OptionValue {
    #[prost(oneof = "Value", tags = "1, 2, 3, 4, 5")]
    pub(super) value: Option<Value>,
}

/// What an option may hold.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Flag(bool),
    #[prost(sfixed64, tag = "3")]
    Whole(i64),
    #[prost(double, tag = "4")]
    Number(f64),
    #[prost(message, tag = "5")]
    Texts(Texts),
}

/// A list of texts, which no option of the hub is.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Texts {
    #[prost(string, repeated, tag = "1")]
    pub(super) values: Vec<String>,
}

/// The request of the action `SetSessionOptions`, and the result of `GetSessionOptions`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SessionOptions {
    #[prost(map = "string, message", tag = "1")]
    pub(super) options: HashMap<String, OptionValue>,
}

/// The result of `SetSessionOptions`: the options that were not set.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SessionErrors {
    #[prost(map = "string, message", tag = "1")]
    pub(super) errors: HashMap<String, SessionError>,
}

/// Why an option was not set: one of the numbers below.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SessionError {
    #[prost(int32, tag = "1")]
    pub(super) kind: i32,
}

/// There is no such option.
pub(super) const INVALID_NAME: i32 = 1;

/// The option cannot have this value.
pub(super) const INVALID_VALUE: i32 = 2;

/// The result of `CloseSession`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Closed {
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}

/// The session is no more.
pub(super) const CLOSED: i32 = 1;

/// There was none that could be closed.
pub(super) const NOT_CLOSEABLE: i32 = 3;

/// `DoPutUpdateResult` of Flight SQL, with the hub's receipt in a field that clients without knowledge of it pass over.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Ingested {
    /// Rows now in the dataset.
    #[prost(int64, tag = "1")]
    pub(super) record_count: i64,
    /// The receipt, in JSON.
    #[prost(string, tag = "1000")]
    pub(super) receipt: String,
}
