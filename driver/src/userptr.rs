//! A device that cannot fault works on ordinary memory: its pages are got when work is submitted.
//!
//! An [`Object`] is a pointer, a length and what the device may do there. [`UserPtr::submit`] runs work on some objects if the device's table has all
//! their pages; where it has not, a worker brings them in, because that sleeps. An invalidation cancels the work in flight on its range, waits until the
//! device makes no access there any more, and the next submit gets pages again.
//!
//! The threads (2018): i915 took a semaphore for reading around get-pages and for writing from an invalidation's start to its end. Getting pages can itself
//! invalidate (a deadlock), and what allocates between start and end closed a lock-order chain through reclaim. "Banned at its first invalidation"
//! would be simple, but mprotect, huge-page collapse and migration are innocent. Here nothing is held while pages are got: the
//! core counts collisions, and what is looked at again at the moment work begins is the core's table. The simple policy is there to compare: [`Policy`].
//!
//! # Invariants
//! - USR-1 (FLT-2): work begins with every page of its objects in the table, and sees no page that came after a later invalidation of them: it is
//!   cancelled, and its next access says so.
//! - USR-2 (INV-1): when a blocking invalidation's callback returned, the device makes no access to the range.
//! - USR-3 (INV-9): a pass that must not wait cancels, and answers soon: done, or that the MMU stops the access in flight. Refused only where none does, and
//!   for as long as somebody else begins or cancels.
//! - USR-4: an object outlives its invalidations, unless its policy says otherwise.
//!
//! # Locking
//! `desk` and `flights` are leaves: nothing of the core is called under them but lookups in the table. They are never taken on a stack of the program's.
//!
//! ```text
//! submit                                      invalidating thread
//! flights { all pages in the table: begin }   entries go
//! pin, look: cancelled?                       flights { cancel what overlaps }
//! access, drop the pin                        wait for pins; the change
//! pin, look: cancelled -> the work is over    .
//! ```
//!
//! Linux: drivers/gpu/drm/i915/gem/i915_gem_userptr.c.

mod desk;
mod flights;

use isomem_core::addr::{PageRange, RangeError, VirtAddr};
use isomem_core::mirror::MirrorState;
use isomem_core::mirror::pin::{Pin, PinSlot};
use isomem_core::mirror::range::FaultError;
use isomem_core::mm::{EntryError, Interval, Mm, SubscribeError};
use isomem_core::notifier::{Answer, Blocking, CallbackScope, Invalidation, Subscriber};
use isomem_core::sync::{AtomicBool, Ordering};
use isomem_core::world::{Access, Metadata, OutOfMetadata, World};

use desk::Desk;
pub use flights::Side;
use flights::{Begun, Flight};

pub use crate::link::OpenError;
use crate::link::{Link, Shared};
use crate::work::STACK_BYTES;

/// Objects that one submit can name.
pub const MAX_OBJECTS: usize = 4;

type State<W> = MirrorState<W, Side<W>>;

/// What work needs of its objects.
type Wants = [Option<(PageRange, Access)>; MAX_OBJECTS];

/// What an invalidation does to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Its pages are got again.
    Survives,
    /// It is dead from then on, however innocent the cause was. To compare with.
    DiesAtOnce,
}

/// Why there is no object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The bytes are none of user space.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Nobody would tell it of invalidations.
    #[error(transparent)]
    Subscribe(#[from] SubscribeError),
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
}

/// Why work was not done, or not to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Pages are missing and it must not sleep: the worker was asked for them. Submit again.
    #[error("pages are missing; the worker has been asked for them")]
    Again,
    /// As much work is in flight as the device takes.
    #[error("as much work is in flight as the device takes")]
    Full,
    /// More objects than [`MAX_OBJECTS`], or none.
    #[error("work takes from 1 to {MAX_OBJECTS} objects, not {0}")]
    Objects(usize),
    /// An object died at an invalidation, as its [`Policy`] says.
    #[error("an object is dead: its memory was invalidated once")]
    Dead,
    /// Pages could not be got.
    #[error(transparent)]
    Fault(#[from] FaultError),
    /// It ended before its end.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<EntryError> for SubmitError {
    fn from(error: EntryError) -> Self {
        Self::Fault(error.into())
    }
}

/// Why work must not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// An invalidation of its objects came. `None` where the device was released, and where the invalidation is only just coming.
    #[error("the work was cancelled by {}", By(*.0))]
    Cancelled(Option<Invalidation>),
    /// It reaches outside of its objects, or writes to one that is for reading.
    #[error("the work reached outside of its objects")]
    Outside,
}

struct By(Option<Invalidation>);

impl core::fmt::Display for By {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            Some(invalidation) => write!(f, "an invalidation ({invalidation})"),
            None => f.write_str("an invalidation, or because the device was released"),
        }
    }
}

/// Hears of an object's invalidations, where these are its death.
struct Grave<W: World>(Shared<W, AtomicBool>);

impl<W: World> Subscriber for Grave<W> {
    fn start(&self, _: &Invalidation, _: &CallbackScope<'_>) {
        // Release pairs with the Acquire in `Object::wants`.
        self.0.store(true, Ordering::Release);
    }

    fn try_start(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) -> Answer {
        self.start(invalidation, scope);
        Answer::Done
    }
}

/// Memory of the program that the device may work on. Nothing is got before the first submit.
pub struct Object<W: World> {
    start: usize,
    len_bytes: usize,
    range: PageRange,
    access: Access,
    /// Whether it is dead; with [`Policy::DiesAtOnce`] only, as the next.
    dead: Option<Shared<W, AtomicBool>>,
    _interval: Option<Interval<W>>,
}

impl<W: World> core::fmt::Debug for Object<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Object")
            .field("range", &self.range)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

impl<W: World> Object<W> {
    fn wants(&self) -> Result<(PageRange, Access), SubmitError> {
        match &self.dead {
            Some(dead) if dead.load(Ordering::Acquire) => Err(SubmitError::Dead),
            _ => Ok((self.range, self.access)),
        }
    }
}

/// A device of this kind, with its mirror of one address space. See the module.
pub struct UserPtr<W: World> {
    /// Ends before the mirror does.
    worker: Option<W::Thread>,
    desk: Shared<W, Desk<W>>,
    link: Link<W, Side<W>>,
}

impl<W: World> core::fmt::Debug for UserPtr<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("UserPtr")
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl<W: World> UserPtr<W> {
    /// Registers a device with `mm` and links it. Effective on return (INV-8).
    pub fn new(mm: &Mm<W>) -> Result<Self, OpenError> {
        let link = Link::open(mm, "userptr", Side::new(mm)?)?;
        let desk = W::Meta::share(Desk::new(link.state().clone()))?;
        let served = desk.clone();
        let worker = mm.world().spawn("userptr", STACK_BYTES, move || served.serve())?;
        Ok(Self {
            worker: Some(worker),
            desk,
            link,
        })
    }

    fn state(&self) -> &Shared<W, State<W>> {
        self.link.state()
    }

    /// The `len_bytes` bytes from `start` as an object, for `access` at the most. Only the bytes are looked at here: no page is got.
    #[doc(alias = "i915_gem_userptr_ioctl")]
    pub fn object(
        &self,
        start: usize,
        len_bytes: usize,
        access: Access,
        policy: Policy,
    ) -> Result<Object<W>, ObjectError> {
        let range = PageRange::covering(start, len_bytes)?;
        let (mut dead, mut interval) = (None, None);
        if policy == Policy::DiesAtOnce {
            let flag: Shared<W, AtomicBool> = W::Meta::share(AtomicBool::new(false))?;
            let subscriber = W::Meta::share_subscriber(Grave::<W>(flag.clone()))?;
            interval = Some(self.state().mm().subscribe(range, subscriber)?);
            dead = Some(flag);
        }
        Ok(Object {
            start,
            len_bytes,
            range,
            access,
            dead,
            _interval: interval,
        })
    }

    /// Runs `work` on the device, with every page of `objects` there at its beginning. `sleep` says whether it may wait for pages: if not, it
    /// fails with [`SubmitError::Again`] and the worker gets them meanwhile.
    ///
    /// `work` runs on a thread of isomem's own; it should return when an access says that it is stopped, and its own error is passed on. The caller may
    /// hold no lock that a callback or the serving of a CPU fault needs.
    #[doc(alias = "i915_gem_do_execbuffer")]
    pub fn submit<R: Send + 'static>(
        &self,
        objects: &[&Object<W>],
        sleep: Blocking,
        work: impl FnOnce(&mut Job<'_, W>) -> Result<R, Stopped> + Send + 'static,
    ) -> Result<R, SubmitError> {
        if objects.is_empty() || objects.len() > MAX_OBJECTS {
            return Err(SubmitError::Objects(objects.len()));
        }
        let mut parts = [None; MAX_OBJECTS];
        let mut wants: Wants = [None; MAX_OBJECTS];
        for (index, object) in objects.iter().enumerate() {
            wants[index] = Some(object.wants()?);
            parts[index] = Some((object.start, object.len_bytes, object.access));
        }
        // The objects may lie where memory lay that the program has just unmapped.
        self.state().synchronize()?;
        let desk = self.desk.clone();
        self.state().mm().world().off_stack(move || {
            let flight = begin(&desk, wants, sleep)?;
            run(desk.state(), &flight, parts, work)
        })
    }

    /// The device is gone on return: work in flight was cancelled and its accesses are over.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        let mm = self.state().mm().clone();
        // In a fork's child the worker, which is not there, may have the lock.
        if mm.world().is_current() {
            let desk = self.desk.clone();
            mm.world().off_stack(move || desk.stop());
        }
        drop(worker);
        self.link.end();
    }
}

impl<W: World> Drop for UserPtr<W> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Fast where every page is there; otherwise the worker is asked, and waited for if that is allowed.
fn begin<W: World>(desk: &Shared<W, Desk<W>>, wants: Wants, sleep: Blocking) -> Result<Flight<W>, SubmitError> {
    match Side::begin(desk.state(), &wants) {
        Begun::Flies(flight) => Ok(flight),
        Begun::Full => Err(SubmitError::Full),
        Begun::Released => Err(FaultError::Released.into()),
        Begun::Missing => match sleep {
            Blocking::Never => {
                desk.ask(wants)?;
                Err(SubmitError::Again)
            }
            Blocking::May => desk.ask_and_wait(wants),
        },
    }
}

type Parts = [Option<(usize, usize, Access)>; MAX_OBJECTS];

fn run<W: World, R>(
    state: &State<W>,
    flight: &Flight<W>,
    parts: Parts,
    work: impl FnOnce(&mut Job<'_, W>) -> Result<R, Stopped>,
) -> Result<R, SubmitError> {
    // As many slots as flights: each gives its own back before its flight ends.
    let slot = state.device().pins.claim(state.table()).ok_or(SubmitError::Full)?;
    let mut job = Job {
        state,
        flight,
        slot,
        parts,
    };
    let done = work(&mut job)?;
    // Who did not look after its last access is told, too: what it did there may have been dropped with the page.
    flight.check()?;
    Ok(done)
}

/// Work in flight: the way to its objects.
pub struct Job<'f, W: World> {
    state: &'f State<W>,
    flight: &'f Flight<W>,
    slot: PinSlot<'f, W::Meta>,
    parts: Parts,
}

impl<W: World> core::fmt::Debug for Job<'_, W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Job")
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}

impl<W: World> Job<'_, W> {
    /// Calls `reach` with a pin of the bytes from `offset` of object number `object` on: at most `len_bytes`, less where a block of 2 MiB ends.
    ///
    /// An invalidation of these pages waits while it runs: it should only copy.
    #[inline]
    pub fn with<R>(
        &mut self,
        object: usize,
        offset: usize,
        len_bytes: usize,
        access: Access,
        reach: impl FnOnce(&W, Pin<'_>) -> R,
    ) -> Result<R, Stopped> {
        let part = self.parts.get(object).copied().flatten();
        let (start, there, allowed) = part.ok_or(Stopped::Outside)?;
        if offset > there || len_bytes > there - offset || access > allowed {
            return Err(Stopped::Outside);
        }
        let addr = VirtAddr::new(start + offset).map_err(|_| Stopped::Outside)?;
        let Some(pin) = self.slot.pin(addr, len_bytes, access) else {
            // USR-1: it was there when the work began.
            return Err(self.flight.cancelled());
        };
        // After the pin was published: the invalidation sees the pin, or this sees that it cancelled.
        self.flight.check()?;
        Ok(reach(self.state.mm().world(), pin))
    }
}
