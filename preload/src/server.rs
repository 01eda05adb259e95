//! A thread of the opener that serves who inherited a descriptor, and notices when the last duplicate of one is closed elsewhere.
//!
//! It is a thread of the program like any other, with all signals blocked: it may touch memory that is away.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use crate::process::{Process, Quiet};
use crate::remote;

/// The running thread; dropping it lets it end by itself.
pub(crate) struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    bell: OwnedFd,
    stop: AtomicBool,
}

impl Server {
    pub(crate) fn start(process: &'static Process) -> Result<Self, Errno> {
        let shared = Arc::new(Shared {
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stop: AtomicBool::new(false),
        });
        let own = shared.clone();
        // The thread inherits the mask.
        let _quiet = Quiet::new();
        std::thread::Builder::new()
            .name("isomem-dmirror".into())
            .spawn(move || serve(process, &own))
            .map_err(|_| Errno::AGAIN)?;
        Ok(Self { shared })
    }

    /// Something was opened or closed.
    pub(crate) fn look(&self) {
        // A bell that rings already is as good.
        let _ = rustix::io::write(&self.shared.bell, &1_u64.to_ne_bytes());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Release pairs with the Acquire in `serve`.
        self.shared.stop.store(true, Ordering::Release);
        self.look();
    }
}

fn serve(process: &'static Process, shared: &Shared) {
    while !shared.stop.load(Ordering::Acquire) {
        let opens = process.all();
        let mut fds = vec![PollFd::new(&shared.bell, PollFlags::IN)];
        fds.extend(
            opens
                .iter()
                .map(|(far, _)| PollFd::from_borrowed_fd(far.as_fd(), PollFlags::IN)),
        );
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        let happened: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        let _ = rustix::io::read(&shared.bell, &mut [0_u8; 8]);
        let (mut closed, mut served) = (false, false);
        for (events, (far, open)) in happened[1..].iter().zip(&opens) {
            if events.contains(PollFlags::IN) {
                remote::serve(far.as_fd(), open);
                served = true;
            }
            closed |= events.contains(PollFlags::HUP);
        }
        drop(opens);
        // A close meanwhile may have left an open to the command that was served.
        if closed || served {
            process.sweep();
        }
    }
}
