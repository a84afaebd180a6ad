//! A session driven by a sequence of operations: whatever a kernel, a disk, a client and a neighbour
//! may do, in any order that is allowed, against a model of the device.

use sim::model::fill_payload;

use crate::driver::{BLOCK, Driver, How};
use crate::input::{Choices, Cuts};
use crate::requests::setup;

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The client asks for something: command, flags, offset and length.
    Ask,
    /// The receive under way ends with so many bytes.
    Receive,
    /// The session works on the device.
    Advance,
    /// One of the operations under way ends, as the second byte says.
    Finish,
    /// The send under way ends with so many bytes.
    Send,
    /// So many bytes land in slots.
    Land,
    /// Nothing can be sent for now.
    Block,
    /// Something can be sent again.
    Unblock,
    /// Everything under way goes well.
    Calm,
    /// Somebody else changes some blocks.
    Neighbour,
    /// A segment cannot be read while it is sent.
    SendFault,
    /// So many bytes cannot be put into their slots.
    ReceiveFault,
    /// So many seconds pass.
    Tick,
    /// The server shuts down.
    Drain,
    /// The client ends its side.
    End,
    /// The connection breaks.
    Reset,
    /// The client sends something that is no request.
    Garbage,
}

impl Op {
    /// What each byte means, modulo their number: what makes a session go on comes up more often than
    /// what ends it.
    pub const ALL: [Self; 32] = [
        Self::Ask,
        Self::Receive,
        Self::Advance,
        Self::Finish,
        Self::Send,
        Self::Land,
        Self::Block,
        Self::Unblock,
        Self::Calm,
        Self::Neighbour,
        Self::SendFault,
        Self::ReceiveFault,
        Self::Tick,
        Self::Drain,
        Self::End,
        Self::Reset,
        Self::Garbage,
        Self::Ask,
        Self::Ask,
        Self::Ask,
        Self::Ask,
        Self::Receive,
        Self::Receive,
        Self::Receive,
        Self::Advance,
        Self::Advance,
        Self::Advance,
        Self::Finish,
        Self::Finish,
        Self::Finish,
        Self::Send,
        Self::Neighbour,
    ];
}

/// Any sequence of operations. The first bytes say what device and what bounds there are.
pub fn session(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let setup = setup(&mut choices);
    let size_bytes = setup.size_bytes;
    let mut driver = Driver::new(setup);
    if choices.below(8) != 7 {
        // Most of the time the handshake is over.
        driver.calm(&mut Cuts::new(0));
    }
    let mut asked = 0u64;
    while !choices.is_empty() && !driver.is_over() {
        driver.client.step();
        match choices.pick(&Op::ALL) {
            Op::Ask => {
                driver.says(&request(&mut choices, asked, size_bytes));
                asked += 1;
            }
            Op::Receive => drop(driver.receive(choices.portion())),
            Op::Advance => drop(driver.advance()),
            Op::Finish => {
                let which = usize::from(choices.byte());
                let how = match choices.byte() {
                    0..=127 => How::Well,
                    128..=191 => How::Badly,
                    short => How::Short(u64::from(short - 192) * 200),
                };
                driver.finish(which, how);
            }
            Op::Send => drop(driver.send(choices.portion())),
            Op::Land => drop(driver.land(choices.portion())),
            Op::Block => drop(driver.block()),
            Op::Unblock => drop(driver.unblock()),
            Op::Calm => driver.calm(&mut Cuts::new(choices.byte())),
            Op::Neighbour => {
                let blocks = size_bytes.div_ceil(BLOCK as u64) as u32;
                let first = choices.below(blocks);
                let count = 1 + choices.below(blocks - first);
                let fill = choices.byte();
                let blocks = u64::from(first)..u64::from(first + count);
                driver.neighbour(blocks, (fill >= 2).then_some(fill), fill == 1);
            }
            Op::SendFault => drop(driver.send_fault()),
            Op::ReceiveFault => drop(driver.receive_fault(choices.portion())),
            Op::Tick => driver.tick(u64::from(choices.byte())),
            Op::Drain => driver.drain(),
            Op::End => driver.ends(),
            Op::Reset => driver.resets(),
            Op::Garbage => driver.says(&[choices.byte(); 28]),
        }
    }
    driver.run_out(&mut Cuts::new(0));
}

/// A request, most of the time within the device, with a payload that no other request has.
fn request(choices: &mut Choices<'_>, serial: u64, size_bytes: u64) -> Vec<u8> {
    let command = choices.below(8);
    let flags = choices.pick(&[0, 1, 2, 3, 16, 18, 4, 0x8000u16]);
    let offset = u64::from(choices.below(1 << 16)) % (size_bytes + 200);
    let length = choices.below(1 << 14);
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
    bytes.extend(flags.to_be_bytes());
    bytes.extend((command as u16).to_be_bytes());
    bytes.extend((serial | 0xc00c_1e00 << 32).to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    if command == 1 {
        let header = bytes.len();
        bytes.resize(header + length as usize, 0);
        fill_payload(serial as usize, 0, &mut bytes[header..]);
    }
    bytes
}
