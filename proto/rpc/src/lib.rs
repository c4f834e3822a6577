//! The gRPC schema of Causeway and its generated types; its own package so that `causeway-proto` stays free of an async runtime.

pub mod convert;

pub use convert::MalformedMessage;

/// Generated from `schema/causeway/v1/*.proto`; the documentation stands there.
#[allow(clippy::all, clippy::allow_attributes_without_reason, clippy::use_self, unused_qualifications, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("causeway.v1");
}

/// The schema as an encoded `FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
