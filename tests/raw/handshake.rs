//! From the greeting to a chosen export. Ids in comments name the clause of the protocol.

use glassine_tests::client::{Client, OptionReply, info};
use glassine_tests::server::{Server, make_image};

const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ACK: u32 = 1;

fn greeted(server: &Server) -> Client {
    let mut client = Client::connect(&server.socket());
    client.greet(3);
    client
}

#[test]
fn the_greeting_offers_fixed_newstyle_and_no_zeroes() {
    let server = Server::blank("1M", &[]);
    let mut client = Client::connect(&server.socket());
    // H1, H2
    assert_eq!(client.take(18), b"NBDMAGICIHAVEOPT\x00\x03");
    server.stop();
}

#[test]
fn unknown_client_flags_and_a_bad_option_magic_end_the_connection() {
    let server = Server::blank("1M", &[]);
    // H3
    for flags in [4u32, 1 << 31, 7] {
        let mut client = Client::connect(&server.socket());
        client.greet(flags);
        assert!(client.is_closed(), "flags {flags}");
    }
    // H5
    let mut client = greeted(&server);
    client.put(b"IHAVEOPS\0\0\0\x03\0\0\0\0");
    client.flush();
    assert!(client.is_closed());
    server.stop();
}

#[test]
fn export_name_is_padded_unless_the_client_agreed_to_no_zeroes() {
    let server = Server::blank("1M", &[]);
    for (flags, padding) in [(1, 124), (3, 0), (0, 124)] {
        let mut client = Client::connect(&server.socket());
        client.greet(flags);
        client.option(1, b"");
        assert_eq!(client.take(8), (1u64 << 20).to_be_bytes());
        client.take(2);
        assert!(client.take(padding).iter().all(|byte| *byte == 0));
        // What follows is transmission already.
        assert_eq!(client.read(0, 512), [0; 512]);
    }
    // E1
    let mut client = greeted(&server);
    client.option(1, b"another");
    assert!(client.is_closed());
    server.stop();
}

#[test]
fn what_is_not_supported_is_refused_and_skipped() {
    let server = Server::blank("1M", &[]);
    let mut client = greeted(&server);
    // H7: PEEK_EXPORT, STARTTLS, STRUCTURED_REPLY, LIST_ and SET_META_CONTEXT, EXTENDED_HEADERS.
    for option in [4, 5, 8, 9, 10, 11, 0x0765_4321, u32::MAX] {
        assert_eq!(client.ask_option(option, b""), ERR_UNSUP, "option {option}");
        assert_eq!(client.ask_option(option, b"four"), ERR_UNSUP, "option {option}");
        assert_eq!(client.ask_option(option, &[7; 100_000]), ERR_UNSUP, "option {option}");
    }
    client.go("");
    assert_eq!(client.read(0, 512), [0; 512]);
    server.stop();
}

#[test]
fn names_are_looked_up_up_to_4096_bytes_and_refused_beyond() {
    let server = Server::blank("1M", &[]);
    let mut client = greeted(&server);
    // W2
    for length in [1, 255, 256, 4096] {
        let name = vec![b'n'; length];
        assert_eq!(client.ask_option(6, &info(&name, &[])), ERR_UNKNOWN, "{length} bytes");
        assert_eq!(client.ask_option(7, &info(&name, &[3])), ERR_UNKNOWN, "{length} bytes");
    }
    assert_eq!(client.ask_option(7, &info(&[b'n'; 4097], &[])), ERR_INVALID);
    assert_eq!(client.ask_option(7, &info(b"a\0b", &[])), ERR_INVALID);
    assert_eq!(client.ask_option(7, &info(b"\xff\xfe", &[])), ERR_INVALID);
    // An option longer than any: refused, and skipped.
    assert!(client.ask_option(7, &info(&[b'n'; 60_000], &[])) >= 1 << 31);
    client.go("");
    server.stop();
}

#[test]
fn an_option_whose_fields_do_not_fit_its_length_is_invalid() {
    let server = Server::blank("1M", &[]);
    let mut client = greeted(&server);
    for option in [6, 7] {
        // G1: no fields at all; a name longer than the option (CVE-2022-26495); requests that are
        // not there, or not counted.
        let mut not_counted = info(b"", &[3]);
        not_counted[5] = 0;
        let mut not_there = info(b"", &[3]);
        not_there[5] = 2;
        for data in [&[][..], &[0xff; 4], &[0xff, 0xff, 0xff, 0xff, 0, 0], &not_counted, &not_there]
        {
            assert_eq!(client.ask_option(option, data), ERR_INVALID, "{data:?}");
        }
    }
    // L2
    assert_eq!(client.ask_option(3, b"x"), ERR_INVALID);
    client.go("");
    server.stop();
}

#[test]
fn an_option_of_four_gigabytes_costs_the_server_nothing() {
    let server = Server::blank("1M", &[]);
    let before = server.memory_kib();
    for option in [1u32, 2, 3, 6, 7, 99] {
        let mut client = greeted(&server);
        client.put(b"IHAVEOPT");
        client.put(&option.to_be_bytes());
        client.put(&u32::MAX.to_be_bytes());
        client.put(&[0; 1000]);
        client.flush();
        // ABORT is answered as always (A2); the others end the connection.
        if option == 2 {
            assert_eq!(client.option_reply().kind, ACK);
        }
        assert!(client.is_closed(), "option {option}");
    }
    let grown = server.memory_kib().saturating_sub(before);
    assert!(grown < 4096, "the server grew by {grown} KiB");
    server.stop();
}

#[test]
fn abort_is_acknowledged_with_or_without_data() {
    let server = Server::blank("1M", &[]);
    for data in [&b""[..], b"and more"] {
        let mut client = greeted(&server);
        // A1, A2
        assert_eq!(client.ask_option(2, data), ACK);
        assert!(client.is_closed());
    }
    server.stop();
}

#[test]
fn info_and_go_say_the_same_and_only_what_they_should() {
    let directory = glassine_tests::server::scratch();
    let image = directory.path().join("t.img");
    make_image(&image, 1_000_001, 3);
    let server = Server::over(&image, &["--export", "disk"]);
    let mut client = greeted(&server);
    let ask = |client: &mut Client, option| -> Vec<OptionReply> {
        // G2: 77 is no information we know; G10: the empty name is the only export there is.
        client.option(option, &info(b"", &[3, 1, 77, 2, 3]));
        let mut replies = Vec::new();
        while replies.last().is_none_or(|last: &OptionReply| last.kind == 3) {
            let reply = client.option_reply();
            replies.push(OptionReply { option: 0, ..reply });
        }
        replies
    };
    let infos = ask(&mut client, 6);
    let went = ask(&mut client, 7);
    // G7
    assert_eq!(infos, went);
    let data: Vec<_> = infos.iter().map(|reply| reply.data.as_slice()).collect();
    assert_eq!(data.len(), 5);
    // I1: size to the byte, flags.
    assert_eq!(data[0].len(), 12);
    assert_eq!(data[0][2..10], 1_000_001u64.to_be_bytes());
    assert_eq!(data[1], b"\x00\x01disk");
    assert_eq!(data[2], b"\x00\x02");
    // I4
    assert_eq!(data[3], [0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 4, 0, 0, 0]);
    assert_eq!(infos[4].kind, ACK);
    // G8: transmission at once.
    assert_eq!(client.read(1_000_000, 1).len(), 1);
    server.stop();
}

#[test]
fn a_handshake_split_at_every_byte_is_understood() {
    let server = Server::blank("1M", &[]);
    let mut client = Client::connect(&server.socket());
    client.take(18);
    let mut all = 3u32.to_be_bytes().to_vec();
    all.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x08");
    all.extend(info(b"", &[3]));
    for byte in all {
        client.put(&[byte]);
        client.flush();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    while client.option_reply().kind != ACK {}
    assert_eq!(client.read(0, 512), [0; 512]);
    server.stop();
}
