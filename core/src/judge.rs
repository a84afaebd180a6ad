//! What the simulator needs inside the core to prove its own worth: *planted bugs*, mistakes that
//! can be switched on one at a time at the place where somebody would make them, and *marks*, which
//! tell which rare paths a run has taken.
//!
//! All of it is behind the feature `judge`. Without that feature [`planted`] is `false` for the
//! compiler and [`mark`] is nothing, and an optimised build of the production crate refuses to be
//! built with it.

/// Declares an enum of named things, and the list of them with their names and sentences.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $id:literal: $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $(#[doc = $text] $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// A short name.
            #[must_use]
            pub fn id(self) -> &'static str {
                match self { $(Self::$variant => $id,)* }
            }

            /// What it is, in a sentence.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// A mistake that can be planted.
    Bug {
        TornReply = "torn-reply": "the pin goes at the first short send, not when the last byte is out",
        NoPin = "no-pin": "a reply sends slots by reference without pinning them",
        ReuseWhilePinned = "reuse-while-pinned": "displaced slots are freed without looking at pins",
        PublishEarly = "publish-early": "a write is published before all of its direct payload is there",
        FreeOnDisconnect = "free-on-disconnect": "slots are freed while the kernel still receives into them",
        BufferEarly = "buffer-after-cancel": "the staging buffer is let go while a store still reads it",
        LockOverSocket = "lock-over-socket": "a write waits while another connection's payload arrives",
        SerialConnection = "serial-connection": "no request is parsed while a template read is under way",
        ReaderWaitsForWriter = "reader-waits-for-writer": "no request is parsed while the client does not read",
        TailDropped = "tail-dropped": "length / block size blocks: the tail of a read is missing",
        LostHalf = "lost-half": "a merged block is published though its predecessor was replaced",
        WrongPredecessor = "wrong-predecessor": "a partial write over zeroes trusts what its slot holds",
        UnboundedLength = "unbounded-length": "the longest payload is not enforced",
        OffsetWrap = "offset-wrap": "offset + length wraps",
        FlagsAsType = "flags-as-type": "flags and command are read as one number",
        PayloadLeft = "payload-left-in-stream": "the payload of a refused write is not consumed",
        DoubleReply = "double-reply": "a failed template read is answered twice",
        NoReply = "no-reply": "a failed template read is never answered",
        CookieMixed = "cookie-mixed": "completions are matched by their order instead of their id",
        ErrorCached = "error-cached": "a failed template read counts as data",
        ReadinessRace = "readiness-race": "a range counts as there since somebody else is fetching it",
        ShortReadAsFull = "short-read-as-full": "a short template read counts as complete",
        QuotaLeak = "quota-leak": "a released write keeps its charge on the quota",
        TrimKeepsSlot = "trim-keeps-slot": "a trim forgets the slots it displaces",
        TrimFallsThrough = "trim-falls-through": "a trimmed block shows the template again",
        ClaimForgotten = "claim-forgotten": "a checkpoint forgets space set aside that a write under way is using",
        EdgesForgotten = "edges-forgotten": "zeroes leave out edges that were zero, though they are published later",
        ShortKeepsPins = "short-keeps-pins": "a publish that finds too little space, and asks again, keeps the pins of its edges",
        ZeroDetectPartial = "zero-detect-partial": "a write of zeroes to a part of a block zeroes all of it",
        ZeroesRoundOutward = "zero-wipes-block": "zeroes over a part of a block zero all of it",
        DrainDrops = "drain-drops": "a drain closes before the replies in flight are out",
        DeadlineNotArmed = "deadline-not-armed": "a stalled payload keeps its slots for ever",
        RunsNotAdjacent = "runs-not-adjacent": "segments are joined though their slots are not adjacent",
        ReadPastTemplate = "read-past-template": "the tail behind a short template is not zero",
        LateWriteLands = "late-write-lands": "a failed write is answered while a part of it is still being stored",
        ClipAndSayOk = "clip-and-say-ok": "a write past the end is answered with success",
        TrimRoundsOutward = "trim-wipes-neighbours": "an unaligned trim rounds outward",
        HalfCopyKept = "half-copy-kept": "a write whose copy failed is published all the same",
        LostWakeUp = "lost-wake-up": "only the first of those who wait for growth is woken",
        TwoOwners = "two-owners": "the rest of a split run begins one slot early",
        UnknownCommandCloses = "unknown-command-closes": "an unknown command ends the session without a reply",
        ErrorEndsSession = "error-ends-session": "a failed store ends the whole session",
        OnlyFirstEdge = "only-first-edge": "only the first block of an unaligned range is merged",
        FetchFirstSegment = "fetch-first-segment": "only the first part of what a read needs is fetched",
        WalkNotClipped = "walk-not-clipped": "a range that spans subtrees of the map is not clipped to each",
        MergeUnpinned = "merge-unpinned": "a merge does not pin the slot it reads",
        SpillRestarts = "spill-restarts": "a short send of a copied reply goes on from its start",
        CloseUnderReceive = "close-under-receive": "a session closes while the kernel still receives",
        MergeAfterAbort = "merge-after-abort": "a merge that ends after an abort publishes a cut payload",
        StaleDenial = "stale-denial": "a growth that failed long ago refuses a write nobody made room for",
        DeniedForEver = "denied-for-ever": "a session whose write found room after all is refused its next",
        SpaceUsedTwice = "space-used-twice": "two writes use up the same space that was set aside",
        NameTrusted = "name-length-trusted": "the length of a name is not held against the length of its option",
        CountTrusted = "info-count-trusted": "the number of information requests is not held against the length of its option",
        OptionCut = "option-cut-short": "an option is answered before all of its data is there",
        LongOptionLeft = "long-option-left-in-stream": "the data of an option that is too long is not skipped",
        RecordBeforeBytes = "record-before-bytes": "a record becomes durable before the bytes of its slots",
        ReuseBeforeDurable = "reuse-before-durable": "a slot is used again while the last durable map still names it",
        FuaIgnored = "fua-ignored": "a write with FUA is answered when it is visible",
        ReplyBeforeSync = "reply-before-fsync": "a record counts as durable once it is written",
        SyncRetried = "fsync-retried": "an fsync that failed is tried again and believed",
        TornTailAccepted = "torn-tail-accepted": "the checksum of a record is not looked at",
        HoleSkipped = "hole-skipped": "a damaged record is skipped, and replay goes on behind it",
        StaleSegment = "stale-segment": "records of a segment's previous life are replayed",
        OrderSwapped = "order-swapped": "a publish is journaled before the one that came before it",
        TrimForgotten = "trim-forgotten": "zeroes and trims are not journaled",
        CheckpointRaces = "checkpoint-races": "a checkpoint counts before all that it has seen is durable",
        SegmentFreedEarly = "segment-freed-early": "a segment is used again before the superblock is durable that needs it no more",
        FullCheckpointFinal = "full-checkpoint-final": "a checkpoint that finds the disk full ends the journal",
        SectionLost = "section-lost": "a checkpoint goes on behind a section that found the disk full",
        CarriedLost = "carried-lost": "a segment is used again before the blocks that only it carries are synced",
        CarriedOutlives = "carried-outlives": "recovery puts a block back into a slot that has another one by now",
        PunchTooEarly = "punch-too-early": "the space of slots is given back that a pin or the last durable map still names",
        HoleUsed = "hole-used": "slots whose space was given back are free at once",
        HoleForgotten = "hole-forgotten": "after a restart, slots that may have no space are free",
        LastHoleForgotten = "last-hole-forgotten": "after a restart, slots of a group that is cut by the end of the file are free",
        ClaimsMixedUp = "claims-mixed-up": "a write that is given up sets aside the first blocks that anybody claimed",
        SetAsidePunched = "set-aside-punched": "space that is set aside is given back",
        CarriedBeyondLength = "carried-beyond-length": "a record carries blocks of slots that the data file may not have after a power cut",
        CarriedUnchecked = "carried-unchecked": "the checksum of the blocks that a record carries is not looked at",
        CarriedNotRestored = "carried-not-restored": "recovery leaves the blocks that records carry where they are",
        ReplayTwice = "replay-twice": "after recovery, records go to the beginning of the segment again",
        NeedsIgnored = "needs-ignored": "recovery does without the records that the checkpoint needs",
        RepairForgets = "repair-forgets": "a repair forgets the records behind the checkpoint that is damaged",
        GivenUpKept = "given-up-kept": "a repair leaves the superblock of the generation that it gives up",
        RecordOfRefused = "record-of-refused": "a publish is journaled before anything may refuse it",
        FlushTooEarly = "flush-too-early": "a FLUSH joins the barrier under way, which may not cover it",
        SettledUnnoticed = "settled-unnoticed": "a write waits for ever for a barrier that found nothing to record",
        EditPlaceStale = "edit-place-stale": "where an edit waited is remembered although it is in a record by now",
        SealMissesAnswered = "seal-misses-answered": "a seal takes the map as it was before the last publish",
        SealedSlotFreed = "sealed-slot-freed": "a displaced slot is freed though a seal names it",
        DroppedSealFreed = "dropped-seal-freed": "a dropped part of the map is freed though a seal names its slots",
        OlderSealForgotten = "older-seal-forgotten": "when a seal is let go, its slots are freed though an older seal names them",
        OrphanFreedAtOnce = "orphan-freed-at-once": "when a seal is let go, its slots wait for no pin and no record",
        LayerTail = "layer-tail": "size / block size blocks: a layer's last block is taken for one too many",
        StorageMerge = "storage-merge": "neighbouring blocks of a stack count as one piece though they are from different layers",
        ChecksumSkipped = "checksum-skipped": "the checksum of a layer's frame is not looked at",
        PaddedAlways = "padded-always": "EXPORT_NAME is padded for a client that wants no padding",
    }
}

named! {
    /// A rare path.
    Mark {
        PayloadStaged = "payload-staged": "a payload arrived in the staging buffer in full",
        PayloadDirect = "payload-direct": "a payload went straight into its slots",
        PayloadZero = "payload-zero": "a payload was nothing but zeroes",
        PayloadSplit = "payload-split": "the head of a payload was staged, the rest went straight into its slots",
        PayloadDiscarded = "payload-discarded": "the payload of a refused write was discarded over several receives",
        RefusedStaged = "refused-staged": "a write was refused while its payload arrived in the staging buffer",
        RefusedDirect = "refused-direct": "a write was refused whose payload was to go into slots",
        RefusedWhole = "refused-whole": "a write was refused whose payload was there",
        TableFull = "table-full": "a request waited for room in the request table",
        ReceiveFault = "receive-fault": "bytes could not be received into their slots",
        StoreFailed = "store-failed": "a store failed",
        MergeFailed = "merge-failed": "a merge failed",
        FetchShort = "fetch-short": "a template read came short and was continued",
        FetchFailed = "fetch-failed": "a template read failed",
        FetchLate = "fetch-late": "a template read ended after its request was abandoned",
        ResolvedAgain = "resolved-again": "a read was resolved again after its fetch, and parts of it had been written",
        MergedAgain = "merged-again": "a block was replaced while it was being merged",
        PublishNoSpace = "publish-no-space": "a trim took what a write had counted on",
        EdgesDropped = "edges-dropped": "zeroes over zeroes: the edges needed nothing",
        FastRefused = "fast-refused": "a fast zero would have been slow",
        LoadMutable = "load-mutable": "a slow client's segments were copied",
        LoadAll = "load-all": "a segment could not be sent and everything was copied",
        LoadFailed = "load-failed": "a segment could not be copied: its reply became an error",
        ReplyBegun = "reply-begun": "a segment could not be copied and its reply had begun",
        OutOfMemory = "out-of-memory": "there was no room to copy a slow client's segments",
        SpillShort = "spill-short": "a copied segment was sent in parts",
        Abandoned = "abandoned": "a request with slots was given up",
        AbandonedBusy = "abandoned-busy": "a request was given up with operations under way",
        CutPayload = "cut-payload": "a session ended in the middle of a payload",
        UnreadDropped = "unread-dropped": "bytes that had arrived were dropped as the session ended",
        Stalled = "stalled": "a client stalled in the middle of a request",
        HandshakeTimedOut = "handshake-timed-out": "a handshake took too long",
        DrainTimedOut = "drain-timed-out": "a draining client did not take its replies",
        PinsOutOfOrder = "pins-out-of-order": "a pin was let go before an older one",
        WaitForGrowth = "wait-for-growth": "a write waited for the data file to grow",
        GrowthAhead = "growth-ahead": "the data file grew ahead of need",
        GrowthRetried = "growth-retried": "a growth failed and was tried again with only what was needed",
        GrowthFailed = "growth-failed": "a growth failed for good",
        HolePunched = "hole-punched": "free slots gave their space back",
        GroupWhole = "group-whole": "free slots that had been scattered made up a whole group",
        GroupThawed = "group-thawed": "free slots of a group that is not whole were used",
        HoleFilled = "hole-filled": "slots without space got it again",
        Denied = "denied": "a write was refused since growth had failed",
        QuotaRefused = "quota-refused": "a write was refused by the quota",
        PinHoldsSlots = "pin-holds-slots": "displaced slots stayed since a pin looks at them",
        DroppedFreed = "dropped-freed": "slots of a dropped part of the map were freed",
        Provisioned = "provisioned": "zeroes set space aside",
        ProvisionUsed = "provision-used": "a write used space that was set aside",
        ProvisionRestored = "provision-restored": "a released write set its space aside again",
        RunSplit = "run-split": "a free run was split",
        RunsSeveral = "runs-several": "a write got slots that do not lie side by side",
        BlocksCarried = "blocks-carried": "a record carried the blocks of its slots",
        BlocksRestored = "blocks-restored": "recovery put blocks back that records carried",
        CheckpointDone = "checkpoint-done": "a checkpoint took the place of a segment",
        CheckpointDelayed = "checkpoint-delayed": "a checkpoint found the disk full, and was begun again",
        JournalFull = "journal-full": "a publish was refused since the journal was full, and the disk as well",
        CheckpointResumed = "checkpoint-resumed": "a checkpoint that a crash cut short was begun again",
        SectionsSeveral = "sections-several": "a checkpoint has several sections",
        SegmentsBoth = "segments-both": "records of both segments were replayed",
        WentBack = "went-back": "recovery went back to the generation before",
        TailCut = "tail-cut": "a torn record was cut",
        JournalFailed = "journal-failed": "a task of the journal failed",
        BarrierByItself = "barrier-by-itself": "a barrier began though nobody waited",
        BarrierForSpace = "barrier-for-space": "a barrier began since slots were short",
        Backlog = "backlog": "a publish waited for the journal",
        EditReplaced = "edit-replaced": "a block was written again while its last edit was queued",
        FreshFreed = "fresh-freed": "a slot was used again that no record ever named",
        FlushWaited = "flush-waited": "a FLUSH or FUA waited for a barrier",
        SubtreeDropped = "subtree-dropped": "a trim cut off a part of the map",
        SubtreeExpanded = "subtree-expanded": "a part of the map that was all alike was taken apart",
        NodeCopied = "node-copied": "a part of the map was copied since a seal shares it",
        Sealed = "sealed": "a seal was taken",
        Orphaned = "orphaned": "a slot that was displaced is kept by a seal",
        OrphanPassedOn = "orphan-passed-on": "a seal was let go, and an older one names its slot as well",
        OrphanDisplaced = "orphan-displaced": "a seal was let go, and with it a slot that only it named",
        LevelsSeveral = "levels-several": "a range spanned several subtrees of the map",
    }
}

#[cfg(not(any(feature = "judge", loom)))]
pub use switched_off::IS_POSSIBLE;
#[cfg(not(any(feature = "judge", loom)))]
pub(crate) use switched_off::{mark, planted, used};
#[cfg(feature = "judge")]
pub use switched_on::{IS_POSSIBLE, marks, plant, take_marks, take_most_used};
#[cfg(feature = "judge")]
pub(crate) use switched_on::{mark, planted, used};

#[cfg(all(loom, not(feature = "judge")))]
pub use of_models::IS_POSSIBLE;
#[cfg(all(loom, not(feature = "judge")))]
pub(crate) use of_models::{mark, planted, used};

/// Under the model checker the whole process has one bug or none: see [`crate::sync::weakened`].
#[cfg(all(loom, not(feature = "judge")))]
mod of_models {
    use super::{Bug, Mark};

    /// Whether bugs can be planted in this build.
    pub const IS_POSSIBLE: bool = true;

    pub(crate) fn planted(bug: Bug) -> bool {
        crate::sync::weakened(bug.id())
    }

    pub(crate) const fn mark(_: Mark) {}

    pub(crate) const fn used(_: u64) {}
}

#[cfg(feature = "judge")]
mod switched_on {
    extern crate std;

    use core::cell::Cell;

    use super::{Bug, Mark};

    /// Whether bugs can be planted in this build.
    pub const IS_POSSIBLE: bool = true;

    // Of a thread: worlds run side by side, each with a bug of its own or none.
    std::thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
        static MARKS: Cell<u128> = const { Cell::new(0) };
        static MOST_USED: Cell<u64> = const { Cell::new(0) };
    }

    const _: () = assert!(Mark::ALL.len() <= u128::BITS as usize);

    /// Plants a bug in every session and overlay that this thread drives from now on, or none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    /// The marks this thread has hit since they were last taken.
    #[must_use]
    pub fn take_marks() -> u128 {
        MARKS.take()
    }

    /// The most blocks that counted against a quota at any moment since this was last asked: within one
    /// batch they may come and go.
    #[must_use]
    pub fn take_most_used() -> u64 {
        MOST_USED.take()
    }

    #[inline]
    pub(crate) fn used(blocks: u64) {
        MOST_USED.set(MOST_USED.get().max(blocks));
    }

    /// The marks in a set.
    pub fn marks(set: u128) -> impl Iterator<Item = Mark> {
        Mark::ALL.iter().copied().filter(move |mark| set & 1 << *mark as u128 != 0)
    }

    #[inline]
    pub(crate) fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    #[inline]
    pub(crate) fn mark(mark: Mark) {
        MARKS.set(MARKS.get() | 1 << mark as u128);
    }
}

#[cfg(not(any(feature = "judge", loom)))]
mod switched_off {
    use super::{Bug, Mark};

    /// Whether bugs can be planted in this build.
    pub const IS_POSSIBLE: bool = false;

    #[inline(always)]
    pub(crate) const fn planted(_: Bug) -> bool {
        false
    }

    #[inline(always)]
    pub(crate) const fn mark(_: Mark) {}

    #[inline(always)]
    pub(crate) const fn used(_: u64) {}
}
