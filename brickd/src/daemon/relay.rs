//! A client that cannot reach a brick, but another of its set, is connected through that one.
//!
//! Only bytes are passed on, under the client's own Hello: the session, its slots and every promise
//! are between the client and the brick, as over a connection of their own. It ends with either side.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use mortar_proto::data::Hello;
use mortar_proto::frame::{self, FrameError, Kind};
use tracing::{debug, info};

use crate::link::{self, Hail};

/// Bytes taken at a time from one side.
const BUFFER_BYTES: usize = 64 << 10;
/// Stack of the thread for the way back.
const STACK_BYTES: usize = 256 << 10;

/// Connects to the brick that a client's Hello names and greets it in the client's name; gives its
/// answer too.
///
/// # Errors
/// In words, when it cannot be reached from here either.
pub fn open(hello: &Hello, hail: &Hail) -> Result<(TcpStream, Hello), String> {
    let onward = Hello {
        relayed: true,
        ..hello.clone()
    };
    link::open(hail, &onward).map_err(|error| format!("{} cannot be reached: {error}", hail.host))
}

/// Passes on what the two say to each other until one of them ends.
///
/// # Errors
/// When the answer does not reach the client or there is no thread.
pub fn serve(
    mut client: TcpStream,
    (mut brick, answer): (TcpStream, Hello),
) -> Result<(), FrameError> {
    frame::send(&mut client, Kind::Hello, &answer, &[])?;
    if !answer.refusal.is_empty() {
        return Ok(());
    }
    let client_address = client.peer_addr().map(|address| address.to_string());
    let brick_address = brick.peer_addr().map(|address| address.to_string());
    info!(
        client = client_address.unwrap_or_default(),
        brick = brick_address.unwrap_or_default(),
        "a client that cannot reach a brick is connected through this host"
    );
    let (mut from_brick, mut to_client) = (brick.try_clone()?, client.try_clone()?);
    let back = std::thread::Builder::new()
        .name("relay".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || pass_on(&mut from_brick, &mut to_client))?;
    pass_on(&mut client, &mut brick);
    if back.join().is_err() {
        debug!("the thread of a relay panicked");
    }
    Ok(())
}

/// Passes bytes on until one side ends, and ends the other.
fn pass_on(from: &mut TcpStream, to: &mut TcpStream) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let outcome: io::Result<()> = loop {
        match from.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(len) => {
                if let Err(error) = to.write_all(&buffer[..len]) {
                    break Err(error);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = outcome {
        debug!(%error, "a relay ends");
    }
    // Either may be gone already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
