//! Frames of the data plane: a fixed preamble, a prost header, raw bytes beside it.
//!
//! ```text
//!  0      4     5     6        8             12             16            20
//!  | MRTR | ver | kind| 0 (2)  | header len  | payload len  | crc32 of   |
//!  |      |     |     |        | (LE)        | (LE)         | 0..16 and header |
//! ```
//!
//! The checksum covers preamble and header; the payload is covered by TCP and, at rest, by the
//! brick's own checks. Malformed input is an error that names what is wrong; whoever reads it
//! closes the connection with one log line.

use std::io::{self, IoSlice, Read, Write};

use bytes::Bytes;

/// First bytes of a data connection; a gRPC connection begins with `PRI `.
pub const MAGIC: [u8; 4] = *b"MRTR";
/// Bytes before the header.
pub const PREAMBLE_BYTES: usize = 20;
/// Largest header: a listing page, or a part of a joining copy's table, stays below it.
pub const HEADER_BYTES_MAX: usize = 4 << 20;
/// Largest payload: one FUSE write of 1 MiB and some room.
pub const PAYLOAD_BYTES_MAX: usize = 2 << 20;

/// What a frame's header is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// [`crate::data::Hello`]
    Hello = 1,
    /// [`crate::data::Request`]
    Request = 2,
    /// [`crate::data::Reply`]
    Reply = 3,
    /// [`crate::data::Ordered`]
    Ordered = 4,
    /// [`crate::data::Ack`]
    Ack = 5,
    /// [`crate::data::LinkMessage`]
    Link = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Kind::Hello,
            2 => Kind::Request,
            3 => Kind::Reply,
            4 => Kind::Ordered,
            5 => Kind::Ack,
            6 => Kind::Link,
            _ => return None,
        })
    }
}

/// A frame as it came.
#[derive(Clone, Debug)]
pub struct Frame {
    /// What the header is.
    pub kind: Kind,
    /// The encoded header.
    pub header: Bytes,
    /// The bytes beside it.
    pub payload: Bytes,
}

impl Frame {
    /// Decodes the header.
    ///
    /// # Errors
    /// [`FrameError::Header`] when the bytes are no such message.
    pub fn decode<M: prost::Message + Default>(&self) -> Result<M, FrameError> {
        M::decode(self.header.clone()).map_err(FrameError::Header)
    }
}

/// Why a frame could not be read or sent.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side closed the connection between two frames.
    #[error("the connection was closed")]
    Closed,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// Not a Mortar frame.
    #[error("bytes that are no Mortar frame: {0:02x?}")]
    Magic([u8; 4]),
    /// Another version of the wire.
    #[error("wire version {theirs}; this one speaks {ours}", ours = crate::WIRE_VERSION)]
    Version {
        /// What the other side speaks.
        theirs: u8,
    },
    /// A kind that this version does not know.
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    /// A length above the bound.
    #[error("frame of {header} header and {payload} payload bytes is too large")]
    TooLarge {
        /// Bytes of header announced.
        header: usize,
        /// Bytes of payload announced.
        payload: usize,
    },
    /// The checksum does not match.
    #[error("frame header with a wrong checksum")]
    Checksum,
    /// The header is no such message.
    #[error("frame header that cannot be read: {0}")]
    Header(prost::DecodeError),
}

/// Sends one frame: preamble and header in one buffer, the payload parts as they lie, one writev.
///
/// # Errors
/// [`FrameError::Io`]; [`FrameError::TooLarge`] before anything is sent.
pub fn send<M: prost::Message>(
    to: &mut impl Write,
    kind: Kind,
    message: &M,
    payload: &[&[u8]],
) -> Result<(), FrameError> {
    let header_bytes = message.encoded_len();
    let payload_bytes: usize = payload.iter().map(|part| part.len()).sum();
    check_lengths(header_bytes, payload_bytes)?;
    let mut head = Vec::with_capacity(PREAMBLE_BYTES + header_bytes);
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&[crate::WIRE_VERSION as u8, kind as u8, 0, 0]);
    head.extend_from_slice(&(header_bytes as u32).to_le_bytes());
    head.extend_from_slice(&(payload_bytes as u32).to_le_bytes());
    head.extend_from_slice(&[0; 4]);
    message.encode_raw(&mut head);
    let checksum = checksum(&head[..16], &head[PREAMBLE_BYTES..]);
    head[16..PREAMBLE_BYTES].copy_from_slice(&checksum.to_le_bytes());
    write_all_parts(to, &head, payload)?;
    Ok(())
}

/// Reads one frame, waiting for it as the reader's own timeout allows.
///
/// # Errors
/// [`FrameError::Closed`] at a clean end; anything else means the connection is to be closed.
pub fn receive(from: &mut impl Read) -> Result<Frame, FrameError> {
    let mut preamble = [0; PREAMBLE_BYTES];
    let first = from.read(&mut preamble)?;
    if first == 0 {
        return Err(FrameError::Closed);
    }
    from.read_exact(&mut preamble[first..])?;
    if preamble[..4] != MAGIC {
        return Err(FrameError::Magic([
            preamble[0],
            preamble[1],
            preamble[2],
            preamble[3],
        ]));
    }
    if u32::from(preamble[4]) != crate::WIRE_VERSION {
        return Err(FrameError::Version {
            theirs: preamble[4],
        });
    }
    let kind = Kind::from_byte(preamble[5]).ok_or(FrameError::Kind(preamble[5]))?;
    let length = |at: usize| {
        u32::from_le_bytes([
            preamble[at],
            preamble[at + 1],
            preamble[at + 2],
            preamble[at + 3],
        ])
    };
    let (header_bytes, payload_bytes) = (length(8) as usize, length(12) as usize);
    check_lengths(header_bytes, payload_bytes)?;
    let mut body = vec![0; header_bytes + payload_bytes];
    from.read_exact(&mut body)?;
    if checksum(&preamble[..16], &body[..header_bytes]) != length(16) {
        return Err(FrameError::Checksum);
    }
    let mut header = Bytes::from(body);
    let payload = header.split_off(header_bytes);
    Ok(Frame {
        kind,
        header,
        payload,
    })
}

fn check_lengths(header: usize, payload: usize) -> Result<(), FrameError> {
    if header > HEADER_BYTES_MAX || payload > PAYLOAD_BYTES_MAX {
        return Err(FrameError::TooLarge { header, payload });
    }
    Ok(())
}

fn checksum(preamble: &[u8], header: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(preamble);
    hasher.update(header);
    hasher.finalize()
}

fn write_all_parts(to: &mut impl Write, head: &[u8], payload: &[&[u8]]) -> io::Result<()> {
    if payload.iter().all(|part| part.is_empty()) {
        return to.write_all(head);
    }
    let mut parts: Vec<IoSlice<'_>> = Vec::with_capacity(1 + payload.len());
    parts.push(IoSlice::new(head));
    parts.extend(
        payload
            .iter()
            .filter(|part| !part.is_empty())
            .map(|part| IoSlice::new(part)),
    );
    let mut left = &mut parts[..];
    while !left.is_empty() {
        match to.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Hello;

    fn framed(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let hello = Hello {
            wire_version: 1,
            session: 7,
            ..Default::default()
        };
        send(&mut bytes, Kind::Hello, &hello, &[payload]).unwrap();
        bytes
    }

    #[test]
    fn a_frame_comes_back_as_it_went() {
        let bytes = framed(b"payload");
        let frame = receive(&mut &bytes[..]).unwrap();
        assert_eq!(frame.kind, Kind::Hello);
        assert_eq!(frame.decode::<Hello>().unwrap().session, 7);
        assert_eq!(&frame.payload[..], b"payload");
    }

    #[test]
    fn malformed_input_is_named() {
        let good = framed(b"");
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            receive(&mut &bytes[..]).unwrap_err()
        };
        assert!(matches!(with(0, b'X'), FrameError::Magic(_)));
        assert!(matches!(with(4, 9), FrameError::Version { theirs: 9 }));
        assert!(matches!(with(5, 99), FrameError::Kind(99)));
        assert!(matches!(with(11, 0xff), FrameError::TooLarge { .. }));
        assert!(matches!(with(15, 0xff), FrameError::TooLarge { .. }));
        assert!(matches!(with(PREAMBLE_BYTES, 0xee), FrameError::Checksum));
        assert!(matches!(receive(&mut &[][..]), Err(FrameError::Closed)));
        assert!(matches!(receive(&mut &good[..7]), Err(FrameError::Io(_))));
    }
}
