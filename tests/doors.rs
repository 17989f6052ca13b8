//! The doors beside HTTP, over the wire and by their own clients, and what they rest on.

mod addresses;
mod catalogue_contents;
mod described;
mod flight;
mod gates;
mod hostile;
mod limits;
mod postgres;
mod secure;
pub mod support;
mod tls;
mod unread;
mod wire;
