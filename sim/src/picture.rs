//! A picture of a run: one HTML page that needs nothing else.
//!
//! Time runs from left to right, a column for each step in which something happened. Each connection
//! has bars for its requests and for the operations they need, and a line of marks for its socket;
//! below, each slot that was touched has a line in the colour of its state, with a mark for every read
//! and write. A race is where a mark meets the wrong colour.

use std::collections::BTreeMap;
use std::fmt::Write;

use glassine_core::slot::SlotState;
use glassine_core::wire;

use crate::scenario::Run;
use crate::trace::Event;

/// More events than this nobody can look at: the last ones are drawn.
const EVENTS_MAX: usize = 4000;
/// Slots that are drawn at most: those touched last.
const SLOTS_MAX: usize = 32;

const LABELS_WIDTH: usize = 150;
const ROW: usize = 20;
const TOP: usize = 26;

/// Something that lasts.
#[derive(Debug)]
struct Bar {
    connection: u64,
    /// The cookie of a request, or the serial number of an operation.
    id: u64,
    class: &'static str,
    label: String,
    from: u64,
    /// From here on all of it is there; before, it is only on its way.
    whole: Option<u64>,
    to: Option<u64>,
    failed: bool,
}

/// Something that happens at once.
#[derive(Debug)]
struct Mark {
    step: u64,
    connection: u64,
    class: &'static str,
    symbol: &'static str,
    text: String,
}

/// A read or a write of a slot.
#[derive(Debug)]
struct Touch {
    step: u64,
    connection: u64,
    slot: u64,
    writes: bool,
    bytes: u64,
}

/// Everything to be drawn.
#[derive(Debug, Default)]
struct Story {
    requests: Vec<Bar>,
    operations: Vec<Bar>,
    marks: Vec<Mark>,
    touches: Vec<Touch>,
    /// By slot: since when it is in which state.
    states: BTreeMap<u64, Vec<(u64, u64)>>,
    last: u64,
}

/// One page with a picture of a run.
#[must_use]
pub fn page(run: &Run, title: &str) -> String {
    let events = run.trace.events();
    let first = events.len().saturating_sub(EVENTS_MAX);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>sim {title}</title>\n\
         <style>{STYLE}</style>\n<h1>sim replay {title}</h1>\n",
        title = escape(title)
    );
    match &run.outcome {
        Ok(report) => {
            let (answered, steps) = (report.answered, report.steps);
            page += &format!("<p>No failure: {answered} requests answered in {steps} steps.</p>\n");
        }
        Err(failure) => {
            page += &format!(
                "<p class=\"failure\"><b>{}</b> (step {}): {}</p>\n",
                escape(&failure.check),
                failure.steps,
                escape(&failure.message)
            );
        }
    }
    page += LEGEND;
    if first > 0 {
        page += &format!("<p>The last {EVENTS_MAX} of {} events.</p>\n", events.len());
    }
    let since = events.get(first).map_or(0, |event| event.step);
    Story::of(events, since).draw(run.outcome.is_err(), &mut page);
    if let Err(failure) = &run.outcome {
        page += &format!(
            "<details><summary>Configuration and last events</summary><pre>{}\n\n{}</pre></details>\n",
            escape(&failure.configuration),
            escape(&failure.trace)
        );
    }
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The class and the name of a command.
fn command(number: u16) -> (&'static str, &'static str) {
    match number {
        wire::CMD_READ => ("read", "READ"),
        wire::CMD_WRITE => ("write", "WRITE"),
        wire::CMD_TRIM => ("zero", "TRIM"),
        wire::CMD_WRITE_ZEROES => ("zero", "ZEROES"),
        wire::CMD_FLUSH => ("other", "FLUSH"),
        wire::CMD_CACHE => ("other", "CACHE"),
        _ => ("other", "nonsense"),
    }
}

/// The class of the state of a slot, by its number in the trace.
fn state_class(state: u64) -> &'static str {
    const FREE: u64 = SlotState::Free as u64;
    const FILLING: u64 = SlotState::Filling as u64;
    const LIVE: u64 = SlotState::Live as u64;
    const HOLE: u64 = SlotState::Hole as u64;
    match state {
        FREE => "free",
        FILLING => "filling",
        LIVE => "live",
        HOLE => "hole",
        _ => "displaced",
    }
}

impl Story {
    /// What happened from a step on.
    fn of(events: &[Event], since: u64) -> Self {
        let mut story = Self::default();
        events.iter().for_each(|event| story.tell(event));
        for bars in [&mut story.requests, &mut story.operations] {
            bars.retain(|bar| bar.to.is_none_or(|to| to >= since));
            bars.iter_mut().for_each(|bar| bar.from = bar.from.max(since));
        }
        story.marks.retain(|mark| mark.step >= since);
        story.touches.retain(|touch| touch.step >= since);
        for states in story.states.values_mut() {
            states.iter_mut().for_each(|(step, _)| *step = (*step).max(since));
        }
        story
    }

    fn tell(&mut self, event: &Event) {
        let Event { step, what, connection, numbers: [first, second, third, fourth] } = *event;
        self.last = step;
        let bar = |class, label: String, id| Bar {
            connection,
            id,
            class,
            label,
            from: step,
            whole: None,
            to: None,
            failed: false,
        };
        let mut mark = |class, symbol, text: String| {
            self.marks.push(Mark { step, connection, class, symbol, text });
        };
        match what {
            "asks" => {
                let (class, name) = command(second as u16);
                self.requests.push(bar(class, format!("{name} {third}+{fourth}"), first));
            }
            "request-sent" => {
                if let Some(bar) = open(&mut self.requests, connection, first) {
                    bar.whole = Some(step);
                }
            }
            "answered" => {
                if let Some(bar) = open(&mut self.requests, connection, first) {
                    (bar.to, bar.failed) = (Some(step), second != 0);
                }
            }
            "store" | "merge" | "fetch" => {
                let mut bar = bar("operation", what.to_owned(), second);
                bar.whole = Some(step);
                self.operations.push(bar);
            }
            "load" => {
                let mut bar = bar("operation", what.to_owned(), first);
                bar.whole = Some(step);
                self.operations.push(bar);
            }
            "ends" => {
                if let Some(bar) = open(&mut self.operations, connection, second) {
                    (bar.to, bar.failed) = (Some(step), third != 0);
                }
            }
            "slot" => self.states.entry(first).or_default().push((step, second)),
            "reads" | "writes" => {
                let writes = what == "writes";
                self.touches.push(Touch { step, connection, slot: first, writes, bytes: third });
            }
            "client-sends" => mark("in", "↑", format!("the client sends {first} bytes")),
            "lands" => mark("in", "↧", format!("{first} bytes land in slots")),
            "received" => mark("in", "•", "the session hears of received bytes".to_owned()),
            "advance" => mark("lock", "◆", "the session uses the overlay".to_owned()),
            "takes" => mark("out", "↓", format!("the kernel takes {first} bytes to send")),
            "sent" => mark("out", "•", "the session hears of sent bytes".to_owned()),
            "send-blocked" => mark("out", "‖", "the kernel takes no more".to_owned()),
            "client-reads" => mark("out", "⇣", format!("the client reads {first} bytes")),
            "grown" if second == 0 => {
                mark("lock", "+", format!("{first} slots from {third} on have got space"));
            }
            "grown" => mark("bad", "+", format!("there is no space for {first} slots")),
            "punched" if first == 0 => {}
            "punched" if second == 0 => {
                mark(
                    "lock",
                    "−",
                    format!("{first} slots from {third} on have given their space back"),
                );
            }
            "punched" => mark("bad", "−", "no space can be given back".to_owned()),
            "reset" | "shutdown" | "half-close" | "receive-fault" | "send-fault"
            | "receive-failed" | "send-failed" => mark("bad", "✕", what.to_owned()),
            "close" => mark("bad", "■", "closed".to_owned()),
            "drain" | "goodbye" | "leaves" | "tick" | "tick-all" | "wake" | "probe" | "probed"
            | "heal" | "ready" => mark("lock", "○", what.to_owned()),
            _ => {}
        }
    }

    /// The steps in which something is drawn, in order.
    fn columns(&self) -> Vec<u64> {
        let bars = self.requests.iter().chain(&self.operations);
        let ends = bars.flat_map(|bar| [Some(bar.from), bar.whole, bar.to]).flatten();
        let mut steps: Vec<u64> = ends.chain([self.last]).collect();
        steps.extend(self.marks.iter().map(|mark| mark.step));
        steps.extend(self.touches.iter().map(|touch| touch.step));
        steps.sort_unstable();
        steps.dedup();
        steps
    }

    fn draw(&self, failed: bool, page: &mut String) {
        let columns = self.columns();
        let width = (1500 / columns.len().max(1)).clamp(9, 26);
        let x = |step: u64| columns.partition_point(|column| *column < step) * width;
        let mut drawing =
            Drawing { x: &x, width, y: TOP, labels: String::new(), body: String::new() };

        let connections = self.requests.iter().map(|bar| bar.connection);
        let mut connections: Vec<u64> =
            connections.chain(self.marks.iter().map(|mark| mark.connection)).collect();
        connections.sort_unstable();
        connections.dedup();
        for connection in connections {
            let name = if connection == 0 {
                "data file".into()
            } else {
                format!("connection {connection}")
            };
            drawing.title(&name);
            let mine = |bar: &&Bar| bar.connection == connection;
            drawing.bars("requests", self.requests.iter().filter(mine), self.last);
            drawing.bars("operations", self.operations.iter().filter(mine), self.last);
            drawing.marks(self.marks.iter().filter(|mark| mark.connection == connection));
        }
        drawing.title("slots");
        let mut slots: Vec<u64> = Vec::new();
        for touch in self.touches.iter().rev() {
            if !slots.contains(&touch.slot) && slots.len() < SLOTS_MAX {
                slots.push(touch.slot);
            }
        }
        slots.sort_unstable();
        for slot in slots {
            let states = self.states.get(&slot).map_or(&[][..], Vec::as_slice);
            let touches = self.touches.iter().filter(|touch| touch.slot == slot);
            drawing.slot(slot, states, touches, self.last);
        }
        drawing.finish(&columns, failed, page);
    }
}

/// The bar of this name that has not ended yet.
fn open(bars: &mut [Bar], connection: u64, id: u64) -> Option<&mut Bar> {
    let is = |bar: &&mut Bar| bar.connection == connection && bar.id == id && bar.to.is_none();
    bars.iter_mut().rev().find(is)
}

/// A picture that grows downwards, line by line.
struct Drawing<'a> {
    x: &'a dyn Fn(u64) -> usize,
    /// Of a column.
    width: usize,
    y: usize,
    labels: String,
    body: String,
}

impl Drawing<'_> {
    fn title(&mut self, text: &str) {
        self.y += ROW / 2;
        self.label("title", text);
        self.y += ROW;
    }

    fn label(&mut self, class: &str, text: &str) {
        let y = self.y + ROW - 6;
        let _ = writeln!(self.labels, "<text class=\"{class}\" x=\"4\" y=\"{y}\">{text}</text>");
    }

    /// Bars side by side as far as they fit, one below the other where they overlap.
    fn bars<'b>(&mut self, name: &str, bars: impl Iterator<Item = &'b Bar>, last: u64) {
        let mut rows: Vec<usize> = Vec::new();
        for bar in bars {
            let (from, to) = ((self.x)(bar.from), (self.x)(bar.to.unwrap_or(last)) + self.width);
            // A label needs its room as well.
            let room = to.max(from + bar.label.len() * 6 + 8);
            let row = rows.iter().position(|end| *end <= from);
            let row = row.unwrap_or_else(|| {
                rows.push(0);
                rows.len() - 1
            });
            rows[row] = room;
            let y = self.y + row * ROW;
            let whole = (self.x)(bar.whole.unwrap_or(bar.to.unwrap_or(last))).clamp(from, to);
            let bad = if bar.failed { " bad" } else { "" };
            let open = if bar.to.is_none() { " open" } else { "" };
            let (class, label) = (bar.class, escape(&bar.label));
            let ended = match (bar.to, bar.failed) {
                (None, _) => ", not answered",
                (_, true) => ", failed",
                _ => "",
            };
            let _ = writeln!(
                self.body,
                "<g class=\"bar {class}{bad}{open}\"><title>{label}{ended}</title>\
                 <rect class=\"coming\" x=\"{from}\" y=\"{}\" width=\"{}\" height=\"{}\"/>\
                 <rect x=\"{whole}\" y=\"{}\" width=\"{}\" height=\"{}\"/>\
                 <text x=\"{}\" y=\"{}\">{label}</text></g>",
                y + 2,
                to - from,
                ROW - 4,
                y + 2,
                to - whole,
                ROW - 4,
                from + 3,
                y + ROW - 6
            );
        }
        if !rows.is_empty() {
            self.label("", name);
            self.y += rows.len() * ROW;
        }
    }

    fn marks<'b>(&mut self, marks: impl Iterator<Item = &'b Mark>) {
        let y = self.y + ROW - 5;
        for mark in marks {
            let x = (self.x)(mark.step) + self.width / 2;
            let Mark { class, symbol, text, step, .. } = mark;
            let _ = writeln!(
                self.body,
                "<text class=\"mark {class}\" x=\"{x}\" y=\"{y}\">{symbol}<title>step {step}: {text}\
                 </title></text>"
            );
        }
        self.label("", "socket, overlay");
        self.y += ROW;
    }

    fn slot<'b>(
        &mut self,
        slot: u64,
        states: &[(u64, u64)],
        touches: impl Iterator<Item = &'b Touch>,
        last: u64,
    ) {
        let y = self.y;
        for (at, (since, state)) in states.iter().enumerate() {
            let until = states.get(at + 1).map_or(last + 1, |(step, _)| *step);
            let (from, to) = ((self.x)(*since), (self.x)(until));
            let class = state_class(*state);
            let _ = writeln!(
                self.body,
                "<rect class=\"{class}\" x=\"{from}\" y=\"{}\" width=\"{}\" height=\"{}\"><title>slot \
                 {slot} is {class} from step {since}</title></rect>",
                y + 1,
                to.saturating_sub(from),
                ROW - 2
            );
        }
        for touch in touches {
            let x = (self.x)(touch.step) + self.width / 2;
            let Touch { step, connection, writes, bytes, .. } = touch;
            let (class, verb) = if *writes { ("writes", "writes") } else { ("reads", "reads") };
            let state = states.iter().rev().find(|(since, _)| since <= step);
            let allowed = if *writes { ["filling"; 2] } else { ["live", "displaced"] };
            let right = state.is_some_and(|(_, state)| allowed.contains(&state_class(*state)));
            let wrong = if right { "" } else { " wrong" };
            let _ = writeln!(
                self.body,
                "<g class=\"touch {class}{wrong}\"><title>step {step}: connection {connection} {verb} \
                 {bytes} bytes</title><circle cx=\"{x}\" cy=\"{}\" r=\"8\"/><text x=\"{x}\" y=\"{}\">\
                 {connection}</text></g>",
                y + ROW / 2,
                y + ROW - 6
            );
        }
        self.label("", &format!("slot {slot}"));
        self.y += ROW;
    }

    fn finish(self, columns: &[u64], failed: bool, page: &mut String) {
        let (width, height) = (columns.len() * self.width + self.width, self.y + ROW);
        let mut scale = String::new();
        let every = (60 / self.width).max(1);
        for (at, step) in columns.iter().enumerate().step_by(every) {
            let x = at * self.width;
            let _ = writeln!(
                scale,
                "<path class=\"grid\" d=\"M{x} {TOP}V{height}\"/><text class=\"step\" x=\"{x}\" \
                 y=\"14\">{step}</text>"
            );
        }
        if failed {
            let x = columns.len() * self.width;
            scale += &format!("<path class=\"end\" d=\"M{x} {TOP}V{height}\"/>\n");
        }
        let _ = write!(
            page,
            "<div class=\"picture\">\n<svg class=\"labels\" width=\"{LABELS_WIDTH}\" height=\"{height}\">\
             <text class=\"step\" x=\"4\" y=\"14\">step</text>\n{}</svg><svg width=\"{width}\" \
             height=\"{height}\">\n{scale}{}</svg></div>\n",
            self.labels, self.body
        );
    }
}

const STYLE: &str = "
body { font: 13px/1.5 sans-serif; margin: 16px; color: #1f2933; background: #fff }
h1 { font-size: 16px; margin: 0 }
pre { font: 11px/1.3 monospace }
.failure { border-left: 4px solid #d01030; padding-left: 8px; max-width: 110em }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: center }
.legend svg { vertical-align: middle }
.picture { display: flex; overflow-x: auto; border: 1px solid #cbd2d9; padding-bottom: 8px }
.picture svg { flex: none }
.labels { position: sticky; left: 0; background: #fff; border-right: 1px solid #cbd2d9; z-index: 1 }
svg text { font: 10px sans-serif; fill: #1f2933 }
svg .title { font-weight: bold; font-size: 12px }
svg .step { fill: #7b8794 }
.grid { stroke: #eceff2 }
.end { stroke: #d01030; stroke-width: 2 }
.bar rect { stroke: none }
.bar .coming { opacity: .35 }
.read rect { fill: #8fbfee }
.write rect { fill: #f3b664 }
.zero rect { fill: #c9a6e4 }
.other rect { fill: #c3cad1 }
.operation rect { fill: #a8d5ce }
.bar.bad rect { stroke: #d01030; stroke-width: 1.5 }
.bar.open rect { stroke: #1f2933; stroke-dasharray: 3 2 }
.mark { text-anchor: middle; font-size: 12px }
svg .in { fill: #b36b00 }
svg .out { fill: #1260a8 }
svg .lock { fill: #52606d }
svg .bad { fill: #d01030 }
.free { fill: #eef0f2 }
.filling { fill: #fde29b }
.live { fill: #bfe8c4 }
.displaced { fill: #dccdf0 }
.hole { fill: #52606d }
.touch text { text-anchor: middle; fill: #fff; font-size: 9px }
.touch.reads circle { fill: #1260a8 }
.touch.writes circle { fill: #b36b00 }
.touch.wrong circle { stroke: #d01030; stroke-width: 4 }
";

const LEGEND: &str = "<div class=\"legend\">
<span><svg width=\"90\" height=\"18\"><g class=\"bar read\"><rect class=\"coming\" width=\"90\" height=\"16\"/>\
<rect x=\"30\" width=\"60\" height=\"16\"/><text x=\"3\" y=\"12\">READ 0+4096</text></g></svg> a request: pale \
while it arrives, then until it is answered; its offset and length in bytes; dashed if never answered, red if \
answered with an error</span>
<span><svg width=\"44\" height=\"18\"><g class=\"bar operation\"><rect width=\"44\" height=\"16\"/><text x=\"3\" \
y=\"12\">store</text></g></svg> an operation on files</span>
<span><svg width=\"228\" height=\"18\"><rect class=\"free\" width=\"46\" height=\"16\"/><rect class=\"filling\" \
x=\"46\" width=\"46\" height=\"16\"/><rect class=\"live\" x=\"92\" width=\"40\" height=\"16\"/><rect \
class=\"displaced\" x=\"132\" width=\"58\" height=\"16\"/><rect class=\"hole\" x=\"190\" width=\"38\" \
height=\"16\"/><text x=\"14\" y=\"12\">free</text><text x=\"56\" \
y=\"12\">filling</text><text x=\"102\" y=\"12\">live</text><text x=\"136\" y=\"12\">displaced</text><text x=\"197\" \
y=\"12\" fill=\"#fff\">hole</text></svg> a \
slot</span>
<span><svg width=\"40\" height=\"18\"><g class=\"touch reads\"><circle cx=\"9\" cy=\"9\" r=\"8\"/><text x=\"9\" \
y=\"12\">1</text></g><g class=\"touch writes\"><circle cx=\"29\" cy=\"9\" r=\"8\"/><text x=\"29\" y=\"12\">2</text>\
</g></svg> read, written by connection 1, 2</span>
<span><svg width=\"24\" height=\"22\"><g class=\"touch reads wrong\"><circle cx=\"12\" cy=\"11\" r=\"8\"/><text \
x=\"12\" y=\"14\">1</text></g></svg> in a state in which it must not be</span>
<span><svg width=\"150\" height=\"18\"><text class=\"mark in\" x=\"8\" y=\"13\">↑</text><text class=\"mark in\" \
x=\"28\" y=\"13\">↧</text><text class=\"mark lock\" x=\"48\" y=\"13\">◆</text><text class=\"mark out\" x=\"68\" \
y=\"13\">↓</text><text class=\"mark out\" x=\"88\" y=\"13\">⇣</text><text class=\"mark out\" x=\"108\" \
y=\"13\">‖</text><text class=\"mark bad\" x=\"128\" y=\"13\">✕</text></svg> client sends, payload lands in slots, \
session uses the overlay, kernel takes bytes to send, client reads, kernel takes no more, broken</span>
<span>Rest the pointer on anything to see what it is.</span>
</div>
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::Tape;
    use crate::scenario;
    use crate::trace::Trace;

    #[test]
    fn a_page_tells_every_request_and_every_slot_and_needs_nothing_else() {
        let small = "slots direct resets read,write-part zero-part".parse().expect("a small world");
        let tape = Tape::path(vec![1; 6]);
        let run = scenario::run_small(&small, tape, Trace::complete(), |_| true);
        let page = page(&run, "a world <&>");
        assert!(page.contains("a world &lt;&amp;&gt;"));
        let asked = run.trace.events().iter().filter(|event| event.what == "asks").count();
        let bars = ["read", "write", "zero", "other"]
            .map(|class| page.matches(&format!("<g class=\"bar {class}")).count());
        // One bar is in the legend.
        assert_eq!(bars.iter().sum::<usize>(), asked + 1);
        assert!(page.contains("class=\"live\"") && page.contains("touch writes"));
        assert!(!page.contains("http") && !page.contains("src="));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }
}
