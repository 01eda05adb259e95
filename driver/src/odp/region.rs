//! Memory regions and the keys that name them.

use core::fmt;

use allocator_api2::vec::Vec;
use isomem_core::addr::PageRange;
use isomem_core::bus::{Bus, Window};
use isomem_core::sync::{AtomicBool, Ordering};
use isomem_core::world::{Access, OutOfMetadata};

use super::{MAX_QUEUES, OdpError};
use crate::link::Shared;

/// Regions that a card can have at the same time.
pub const MAX_REGIONS: usize = 64;

/// Names a region. That of a region which is gone names none, ever (ODP-4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Memory that a work request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its region.
    pub key: Key,
    /// Program address of the first byte.
    pub addr: usize,
    /// Length in bytes.
    pub len_bytes: usize,
}

impl Segment {
    pub(super) fn refused(&self, access: Access) -> OdpError {
        OdpError::NotInRegion {
            addr: self.addr,
            len_bytes: self.len_bytes,
            access,
        }
    }
}

/// A registered region.
pub(super) struct Region<W: Bus> {
    pub(super) window: W::Window,
    pub(super) range: PageRange,
    access: Access,
    /// Cleared when it is deregistered.
    registered: AtomicBool,
}

impl<W: Bus> Region<W> {
    pub(super) fn new(window: W::Window, range: PageRange, access: Access) -> Self {
        Self {
            window,
            range,
            access,
            registered: AtomicBool::new(true),
        }
    }

    /// Asked after a pin was published (ODP-1).
    pub(super) fn is_registered(&self) -> bool {
        // SeqCst: whoever ends the region and then looks for pins finds that one, or this sees that it has ended.
        self.registered.load(Ordering::SeqCst)
    }

    /// Ends it: no access begins any more whose pin is not found from here on.
    pub(super) fn end(&self) {
        // SeqCst: see `is_registered`.
        self.registered.store(false, Ordering::SeqCst);
    }

    /// Whether the bytes lie in it, and the window vouches for them.
    pub(super) fn permits(&self, addr: usize, len_bytes: usize, access: Access) -> bool {
        let inside = PageRange::covering(addr, len_bytes).is_ok_and(|range| self.range.covers(range));
        inside && access <= self.access && self.window.allows(addr, len_bytes, access)
    }
}

/// A region by its key, if there is one.
pub(super) type Known<W> = Option<(Key, Shared<W, Region<W>>)>;

/// The regions of a card, and how many queues it has.
pub(super) struct Regions<W: Bus> {
    places: Vec<Known<W>, W::Meta>,
    registered: u64,
    queues: usize,
}

impl<W: Bus> Regions<W> {
    pub(super) fn new() -> Result<Self, OutOfMetadata> {
        let mut places = Vec::new_in(W::Meta::default());
        places.try_reserve_exact(MAX_REGIONS).map_err(|_| OutOfMetadata)?;
        places.resize_with(MAX_REGIONS, || None);
        Ok(Self {
            places,
            registered: 0,
            queues: 0,
        })
    }

    /// `None` where all places are taken.
    pub(super) fn insert(&mut self, region: Shared<W, Region<W>>) -> Option<Key> {
        let index = self.places.iter().position(Option::is_none)?;
        self.registered += 1;
        let key = Key(self.registered * MAX_REGIONS as u64 + index as u64);
        self.places[index] = Some((key, region));
        Some(key)
    }

    pub(super) fn get(&self, key: Key) -> Option<Shared<W, Region<W>>> {
        let place = self.places[key.0 as usize % MAX_REGIONS].as_ref();
        place
            .filter(|(named, _)| *named == key)
            .map(|(_, region)| region.clone())
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Shared<W, Region<W>>> {
        self.get(key)?;
        let place = self.places[key.0 as usize % MAX_REGIONS].take();
        place.map(|(_, region)| region)
    }

    /// Counts a queue in; false where there are enough.
    pub(super) fn add_queue(&mut self) -> bool {
        let fits = self.queues < MAX_QUEUES;
        self.queues += usize::from(fits);
        fits
    }

    pub(super) fn remove_queue(&mut self) {
        self.queues -= 1;
    }
}
