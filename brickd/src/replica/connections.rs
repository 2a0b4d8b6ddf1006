//! The connections of clients, and of copies that read for a heal, that this copy serves.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All that are open. A thread that serves one sleeps in its socket: one that nobody closes would
/// hold the brick's folder open for as long as its client lives, however long the brick is halted.
#[derive(Default)]
pub struct Connections {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    last: u64,
    sockets: HashMap<u64, Arc<TcpStream>>,
}

/// A connection that is served, until it is dropped.
pub struct Served<'a> {
    of: &'a Connections,
    number: u64,
    socket: Arc<TcpStream>,
}

impl Connections {
    /// Serves one more.
    pub fn serve(&self, socket: TcpStream) -> Served<'_> {
        let socket = Arc::new(socket);
        let mut open = self.lock();
        open.last += 1;
        let number = open.last;
        open.sockets.insert(number, Arc::clone(&socket));
        Served {
            of: self,
            number,
            socket,
        }
    }

    /// Ends all of them: whoever reads from one hears that it is over.
    pub fn close_all(&self) {
        for socket in self.lock().sockets.values() {
            // One that its client has closed is no trouble.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Served<'_> {
    /// To read from and write to.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.of.lock().sockets.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    #[test]
    fn a_thread_that_waits_for_its_client_hears_of_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let connections = Connections::default();
        let served = connections.serve(socket);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| served.socket().read(&mut [0; 1]).unwrap());
            connections.close_all();
            assert_eq!(reader.join().unwrap(), 0);
        });
        assert_eq!(connections.lock().sockets.len(), 1);
        drop((served, client));
        assert!(connections.lock().sockets.is_empty());
    }
}
