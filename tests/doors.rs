//! The doors beside HTTP, over the wire and by their own clients, and what they rest on.

mod catalogue_contents;
mod described;
mod flight;
mod gates;
mod hostile;
mod limits;
mod postgres;
pub mod support;
mod tls;
mod wire;
