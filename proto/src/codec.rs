//! Reading fixed layouts out of byte slices: what the decoders of all protocols share. All integers are big-endian.

use crate::key::{KEY_LEN, NodePublic};

/// The slice ends before the value does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the input ends too early")]
pub struct UnexpectedEnd;

/// Takes values off the front of a slice.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether everything has been read.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Takes the next `len` bytes.
    ///
    /// # Errors
    /// [`UnexpectedEnd`]; nothing is taken then.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], UnexpectedEnd> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(UnexpectedEnd)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Takes the next `N` bytes.
    ///
    /// # Errors
    /// [`UnexpectedEnd`]; nothing is taken then.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], UnexpectedEnd> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(UnexpectedEnd)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Takes one byte.
    ///
    /// # Errors
    /// [`UnexpectedEnd`].
    pub fn u8(&mut self) -> Result<u8, UnexpectedEnd> {
        self.array().map(u8::from_be_bytes)
    }

    /// Takes a 16-bit integer.
    ///
    /// # Errors
    /// [`UnexpectedEnd`].
    pub fn u16(&mut self) -> Result<u16, UnexpectedEnd> {
        self.array().map(u16::from_be_bytes)
    }

    /// Takes a 32-bit integer.
    ///
    /// # Errors
    /// [`UnexpectedEnd`].
    pub fn u32(&mut self) -> Result<u32, UnexpectedEnd> {
        self.array().map(u32::from_be_bytes)
    }

    /// Takes a 64-bit integer.
    ///
    /// # Errors
    /// [`UnexpectedEnd`].
    pub fn u64(&mut self) -> Result<u64, UnexpectedEnd> {
        self.array().map(u64::from_be_bytes)
    }

    /// Takes a public key.
    ///
    /// # Errors
    /// [`UnexpectedEnd`].
    pub fn key(&mut self) -> Result<NodePublic, UnexpectedEnd> {
        self.array::<KEY_LEN>().map(NodePublic::from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_in_order_and_a_short_slice_keeps_what_is_left() {
        let mut reader = Reader::new(&[1, 0, 2, 0, 0, 0, 3, 9]);
        assert_eq!((reader.u8(), reader.u16(), reader.u32()), (Ok(1), Ok(2), Ok(3)));
        assert_eq!(reader.u64(), Err(UnexpectedEnd));
        assert_eq!(reader.bytes(2), Err(UnexpectedEnd));
        assert_eq!(reader.rest(), [9]);
        assert_eq!(reader.bytes(1), Ok(&[9][..]));
        assert!(reader.is_empty());
        assert_eq!(reader.key(), Err(UnexpectedEnd));
    }
}
