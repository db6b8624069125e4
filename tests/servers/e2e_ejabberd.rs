//! End to end on a real ejabberd, with slixmpp and OpenSSL on the other side.

use support::servers::Kind;

support::scenarios!(Kind::Ejabberd);
