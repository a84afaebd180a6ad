//! The oracle: it knows every answer a READ may get.
//!
//! Payload bytes are a function of (version, position), so any few bytes name the write they came
//! from. For each byte the model keeps which changes were sent, and by when each had taken effect;
//! what a READ shows must be one of the admissible versions everywhere, and one point in time as a
//! whole. It looks only at what clients sent and received, never into the core.

use std::hash::{Hash, Hasher};
use std::ops::Range;

use crate::broken::Broken;

const BLOCK: u64 = 4096;

/// A moment of a run: its step.
pub type Moment = u64;

/// What a change leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Bytes of this version.
    Payload,
    /// These bytes, from the first of the change on. A fuzzer chose them: they may repeat.
    Given(Vec<u8>),
    /// Zeroes.
    Zero,
}

/// A WRITE, TRIM or WRITE_ZEROES that a client began to send.
#[derive(Debug, Clone)]
pub struct Change {
    bytes: Range<u64>,
    content: Content,
    /// When its last byte left the client; it cannot take effect earlier.
    sent_at: Option<Moment>,
    /// It had taken effect at this moment at the latest.
    effect_by: Option<Moment>,
    /// It was answered with an error: it must never show.
    refused: bool,
    /// It was acknowledged as durable.
    survives: bool,
}

/// All changes of a device, and what it was before them.
#[derive(Debug)]
pub struct Model {
    size_bytes: u64,
    template_bytes: u64,
    changes: Vec<Change>,
    by_block: Vec<Vec<usize>>,
    /// What the device showed after the last crash; before the first, the template and zeroes.
    initial: Option<Vec<u8>>,
    /// Whatever had taken effect before this moment survives a crash.
    flushed: Moment,
}

/// What lies under all changes.
const INITIAL: usize = usize::MAX;

/// Eight bytes of a payload, from a position on that is divisible by eight.
fn payload_word(version: usize, position: u64) -> [u8; 8] {
    let mut word = (version as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (position / 8);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (word ^ (word >> 31)).to_le_bytes()
}

/// The bytes of a payload, from a position on.
pub fn fill_payload(version: usize, position: u64, bytes: &mut [u8]) {
    // The rest of a word, whole words, and the beginning of one.
    let head = bytes.len().min((8 - position % 8) as usize % 8);
    let (first, rest) = bytes.split_at_mut(head);
    let skip = (position % 8) as usize;
    first.copy_from_slice(&payload_word(version, position)[skip..skip + head]);
    let position = position.wrapping_add(head as u64);
    let (words, last) = rest.as_chunks_mut::<8>();
    let mut at = position;
    for word in words {
        *word = payload_word(version, at);
        at = at.wrapping_add(8);
    }
    let count = last.len();
    last.copy_from_slice(&payload_word(version, at)[..count]);
}

/// A version no change ever has.
const TEMPLATE: usize = usize::MAX - 1;

/// The bytes of the template, from a position on.
pub fn fill_template(position: u64, bytes: &mut [u8]) {
    fill_payload(TEMPLATE, position, bytes);
}

/// A run of bytes of one reply, and the only version it can be.
#[derive(Debug)]
struct Shown {
    bytes: Range<u64>,
    version: usize,
}

impl Model {
    /// A device nobody has written to.
    #[must_use]
    pub fn new(size_bytes: u64, template_bytes: u64) -> Self {
        let blocks = size_bytes.div_ceil(BLOCK) as usize;
        Self {
            size_bytes,
            template_bytes,
            changes: Vec::new(),
            by_block: vec![Vec::new(); blocks],
            initial: None,
            flushed: 0,
        }
    }

    /// The moments its state depends on.
    pub fn moments(&self) -> impl Iterator<Item = Moment> {
        self.changes.iter().flat_map(|change| [change.sent_at, change.effect_by]).flatten()
    }

    /// Hashes what decides about its future: only the order of moments matters.
    pub fn hash_state(&self, rank: &impl Fn(Moment) -> usize, state: &mut impl Hasher) {
        for change in &self.changes {
            let moments = [change.sent_at, change.effect_by].map(|moment| moment.map(rank));
            (moments, change.refused).hash(state);
        }
    }

    /// A client begins to send a change; answers its version.
    pub fn begin(&mut self, bytes: Range<u64>, content: Content) -> usize {
        assert!(bytes.end <= self.size_bytes);
        let version = self.changes.len();
        if !bytes.is_empty() {
            for block in bytes.start / BLOCK..bytes.end.div_ceil(BLOCK) {
                self.by_block[block as usize].push(version);
            }
        }
        let (sent_at, effect_by) = (None, None);
        let (refused, survives) = (false, false);
        self.changes.push(Change { bytes, content, sent_at, effect_by, refused, survives });
        version
    }

    /// Its last byte has left the client.
    pub fn sent(&mut self, version: usize, now: Moment) {
        self.changes[version].sent_at = Some(now);
    }

    /// It was answered with success.
    pub fn answered(&mut self, version: usize, now: Moment) {
        let change = &mut self.changes[version];
        assert!(change.sent_at.is_some());
        change.effect_by = Some(change.effect_by.map_or(now, |at| at.min(now)));
    }

    /// It was answered with an error. Fails if it has been seen.
    pub fn refused(&mut self, version: usize) -> Result<(), Broken> {
        let change = &mut self.changes[version];
        change.refused = true;
        match change.effect_by {
            None => Ok(()),
            Some(at) => {
                let text = format!("change {version} was refused, but a READ showed it at {at}");
                Broken::by("refused write seen", text)
            }
        }
    }

    /// A READ that was issued at `issued` has just been answered with `data`.
    pub fn check(
        &mut self,
        bytes: Range<u64>,
        data: &[u8],
        issued: Moment,
        now: Moment,
    ) -> Result<(), Broken> {
        assert_eq!(data.len() as u64, bytes.end - bytes.start);
        let mut shown = Vec::new();
        let mut start = bytes.start;
        while start < bytes.end {
            let end = bytes.end.min((start / BLOCK + 1) * BLOCK);
            for run in self.runs(start..end) {
                let at = (run.start - bytes.start) as usize;
                let data = &data[at..at + (run.end - run.start) as usize];
                self.check_run(run, data, issued, now, &mut shown)?;
            }
            start = end;
        }
        self.check_one_moment(&shown)?;
        for one in &shown {
            if one.version != INITIAL {
                let change = &mut self.changes[one.version];
                change.effect_by = Some(change.effect_by.map_or(now, |at| at.min(now)));
            }
        }
        Ok(())
    }

    /// A FLUSH that was issued at this moment was answered with success.
    pub fn flushed(&mut self, issued: Moment) {
        self.flushed = self.flushed.max(issued);
    }

    /// A change was acknowledged as durable. What comes before it in the journal is, too.
    pub fn survives(&mut self, version: usize) {
        let change = &mut self.changes[version];
        change.survives = true;
        self.flushed = self.flushed.max(change.sent_at.expect("it was answered"));
    }

    /// After a crash the whole device shows `data`: as it was after some change, none of those missing
    /// that must survive. From now on, this is what it is.
    pub fn recovered(&mut self, data: &[u8], now: Moment) -> Result<(), Broken> {
        let lost = |broken: Broken| Broken {
            check: "a crash leaves a prefix",
            text: format!("after a crash, {}", broken.text),
        };
        let shown = self.check_survived(data, self.flushed, now).map_err(lost)?;
        self.check_one_moment(&shown).map_err(lost)?;
        // Whatever had taken effect before something was sent that survived has survived as well.
        let versions = shown.iter().map(|one| one.version).filter(|version| *version != INITIAL);
        let sent = versions.filter_map(|version| self.changes[version].sent_at).max();
        self.check_survived(data, self.flushed.max(sent.unwrap_or(0)), now).map_err(lost)?;
        self.initial = Some(data.to_vec());
        self.by_block.iter_mut().for_each(Vec::clear);
        self.flushed = 0;
        Ok(())
    }

    /// Whether all that had taken effect before a moment shows, or what came after it.
    fn check_survived(
        &self,
        data: &[u8],
        moment: Moment,
        now: Moment,
    ) -> Result<Vec<Shown>, Broken> {
        let mut shown = Vec::new();
        for start in (0..self.size_bytes).step_by(BLOCK as usize) {
            for run in self.runs(start..self.size_bytes.min(start + BLOCK)) {
                let data = &data[run.start as usize..run.end as usize];
                self.check_run(run.clone(), data, moment, now, &mut shown)?;
                let older = |version: usize| {
                    let survivors =
                        self.covering(&run).filter(|other| self.changes[*other].survives);
                    survivors.into_iter().any(|other| self.is_before(version, other))
                };
                if let Some(Shown { version, .. }) = shown.last().filter(|last| last.bytes == run)
                    && older(*version)
                {
                    let text = format!("bytes {run:?} show version {}", *version as i64);
                    return Broken::by("a crash leaves a prefix", text);
                }
            }
        }
        Ok(shown)
    }

    /// Splits a part of a block where any change begins or ends.
    fn runs(&self, bytes: Range<u64>) -> Vec<Range<u64>> {
        let mut cuts = vec![bytes.start, bytes.end, self.template_bytes];
        for version in &self.by_block[(bytes.start / BLOCK) as usize] {
            let change = &self.changes[*version];
            cuts.extend([change.bytes.start, change.bytes.end]);
        }
        cuts.retain(|cut| (bytes.start..=bytes.end).contains(cut));
        cuts.sort_unstable();
        cuts.dedup();
        cuts.windows(2).map(|pair| pair[0]..pair[1]).collect()
    }

    fn covering(&self, run: &Range<u64>) -> impl Iterator<Item = usize> {
        let block = &self.by_block[(run.start / BLOCK) as usize];
        block.iter().copied().filter(|version| self.covers(*version, run))
    }

    fn covers(&self, version: usize, run: &Range<u64>) -> bool {
        let bytes = &self.changes[version].bytes;
        bytes.start <= run.start && run.end <= bytes.end
    }

    /// The bytes of a version, from a position on, over zeroes.
    fn fill(&self, version: usize, position: u64, bytes: &mut [u8]) {
        if let Some(initial) = self.initial.as_ref().filter(|_| version == INITIAL) {
            bytes.copy_from_slice(&initial[position as usize..position as usize + bytes.len()]);
            return;
        }
        if version == INITIAL {
            let there = self.template_bytes.saturating_sub(position).min(bytes.len() as u64);
            return fill_template(position, &mut bytes[..there as usize]);
        }
        let change = &self.changes[version];
        match &change.content {
            Content::Zero => {}
            Content::Payload => fill_payload(version, position, bytes),
            Content::Given(given) => {
                let from = (position - change.bytes.start) as usize;
                bytes.copy_from_slice(&given[from..from + bytes.len()]);
            }
        }
    }

    /// Whether bytes of a block are those of a version.
    fn matches(&self, version: usize, run: &Range<u64>, data: &[u8]) -> bool {
        let mut expected = [0; BLOCK as usize];
        let expected = &mut expected[..data.len()];
        self.fill(version, run.start, expected);
        *expected == *data
    }

    /// Whether these are bytes of a change, though it does not cover them.
    fn is_foreign(&self, version: usize, run: &Range<u64>, data: &[u8]) -> bool {
        self.changes[version].content == Content::Payload && self.matches(version, run, data)
    }

    /// Whether `earlier` had taken effect before `later` could: it does not show any more.
    fn is_before(&self, earlier: usize, later: usize) -> bool {
        let later = self.changes[later].sent_at.unwrap_or(Moment::MAX);
        earlier == INITIAL || self.changes[earlier].effect_by.is_some_and(|at| at < later)
    }

    fn is_admissible(&self, version: usize, run: &Range<u64>, issued: Moment, now: Moment) -> bool {
        if version != INITIAL {
            let change = &self.changes[version];
            if change.refused || change.sent_at.is_none_or(|at| at > now) {
                return false;
            }
        }
        !self.covering(run).any(|other| {
            other != version
                && self.changes[other].effect_by.is_some_and(|at| at < issued)
                && self.is_before(version, other)
        })
    }

    fn check_run(
        &self,
        run: Range<u64>,
        data: &[u8],
        issued: Moment,
        now: Moment,
        shown: &mut Vec<Shown>,
    ) -> Result<(), Broken> {
        let all: Vec<usize> = std::iter::once(INITIAL).chain(self.covering(&run)).collect();
        let mut found = all.iter().copied().filter(|version| {
            self.is_admissible(*version, &run, issued, now) && self.matches(*version, &run, data)
        });
        let Some(first) = found.next() else {
            return Broken::by("bytes of a reply", self.explain(&run, data, &all, issued, now));
        };
        // A few bytes may look like another version by chance.
        if found.next().is_none() && data.len() >= 8 {
            shown.push(Shown { bytes: run, version: first });
        }
        Ok(())
    }

    fn explain(
        &self,
        run: &Range<u64>,
        data: &[u8],
        all: &[usize],
        issued: Moment,
        now: Moment,
    ) -> String {
        let name = |version: usize| match version {
            INITIAL => "what was there before any change".to_owned(),
            version => format!("change {version} {:?}", self.changes[version]),
        };
        let what = match all.iter().find(|version| self.matches(**version, run, data)) {
            Some(version) => name(*version),
            None => {
                match (0..self.changes.len()).find(|other| self.is_foreign(*other, run, data)) {
                    Some(version) => format!("foreign bytes: {}", name(version)),
                    None if data.iter().all(|byte| *byte == 0) => {
                        "zeroes that nobody wrote".to_owned()
                    }
                    None => "bytes of more than one version, or of none".to_owned(),
                }
            }
        };
        let admissible: Vec<String> = all
            .iter()
            .filter(|version| self.is_admissible(**version, run, issued, now))
            .map(|version| name(*version))
            .collect();
        format!(
            "bytes {run:?} (block {}) of a READ from {issued} to {now} show {what}; admissible: {}",
            run.start / BLOCK,
            admissible.join(", or ")
        )
    }

    /// One reply is one point in time: where one change shows, it (or a later one) shows everywhere.
    fn check_one_moment(&self, shown: &[Shown]) -> Result<(), Broken> {
        for one in shown.iter().filter(|one| one.version != INITIAL) {
            for other in shown.iter().filter(|other| other.version != one.version) {
                if !self.covers(one.version, &other.bytes) {
                    continue;
                }
                let older = self.is_before(other.version, one.version);
                let crossed = other.version != INITIAL && self.covers(other.version, &one.bytes);
                if older || crossed {
                    let text = format!(
                        "bytes {:?} show change {} but bytes {:?}, which it covers, show version {} \
                         of another moment",
                        one.bytes, one.version, other.bytes, other.version as i64
                    );
                    return Broken::by("one moment", text);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(version: usize, bytes: Range<u64>) -> Vec<u8> {
        let mut payload = vec![0; (bytes.end - bytes.start) as usize];
        fill_payload(version, bytes.start, &mut payload);
        payload
    }

    /// Two writes over blocks 0 and 1, the second begun after the first was answered.
    fn two_writes() -> Model {
        let mut model = Model::new(16384, 8192);
        for at in [10, 20] {
            let version = model.begin(0..8192, Content::Payload);
            model.sent(version, at);
            model.answered(version, at + 5);
        }
        model
    }

    #[test]
    fn the_newest_answered_write_is_accepted() {
        let mut model = two_writes();
        assert_eq!(model.check(0..8192, &payload(1, 0..8192), 30, 40), Ok(()));
    }

    #[test]
    fn a_stale_write_is_refused() {
        let mut model = two_writes();
        let error = model.check(0..8192, &payload(0, 0..8192), 30, 40).unwrap_err();
        assert!(error.text.contains("show change 0"), "{error}");
    }

    #[test]
    fn a_read_that_overlaps_a_write_may_show_either_but_not_both() {
        let mut model = two_writes();
        assert_eq!(model.check(0..8192, &payload(0, 0..8192), 18, 40), Ok(()));
        let mut torn = payload(1, 0..4096);
        torn.extend(payload(0, 4096..8192));
        let error = model.check(0..8192, &torn, 18, 40).unwrap_err();
        assert_eq!(error.check, "one moment", "{error}");
    }

    #[test]
    fn a_mixture_within_a_block_is_refused() {
        let mut model = two_writes();
        let mut mixed = payload(1, 0..100);
        mixed.extend(payload(0, 100..4096));
        let error = model.check(0..4096, &mixed, 18, 40).unwrap_err();
        assert!(error.text.contains("more than one version"), "{error}");
    }

    #[test]
    fn foreign_bytes_are_named() {
        let mut model = two_writes();
        let error = model.check(12288..16384, &payload(1, 0..4096), 30, 40).unwrap_err();
        assert!(error.text.contains("more than one version, or of none"), "{error}");
        let template = payload(TEMPLATE, 12288..16384);
        assert!(
            model.check(12288..16384, &template, 30, 40).is_err(),
            "beyond the template is zero"
        );
    }

    #[test]
    fn a_write_whose_last_byte_was_not_sent_must_not_show() {
        let mut model = Model::new(8192, 0);
        let version = model.begin(0..8192, Content::Payload);
        assert!(model.check(0..8192, &payload(version, 0..8192), 1, 2).is_err());
    }

    #[test]
    fn what_one_read_showed_a_later_one_must_not_take_back() {
        let mut model = Model::new(4096, 0);
        let version = model.begin(0..4096, Content::Payload);
        model.sent(version, 5);
        assert_eq!(model.check(0..4096, &payload(version, 0..4096), 6, 7), Ok(()));
        assert!(model.check(0..4096, &[0; 4096], 8, 9).is_err());
    }

    #[test]
    fn a_refused_write_must_not_show() {
        let mut model = Model::new(4096, 0);
        let version = model.begin(0..4096, Content::Payload);
        model.sent(version, 5);
        model.refused(version).unwrap();
        assert!(model.check(0..4096, &payload(version, 0..4096), 6, 7).is_err());
    }
}
