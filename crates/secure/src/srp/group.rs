//! The arithmetic of SRP-6a (RFC 5054, 2.5 and 2.6): public values, the verifier, the common secret.
//!
//! All secret exponents have a fixed number of bits, and all operations on them take the same time for any value.
//! Public values are accepted only at their full length and in 1..N.

use std::marker::PhantomData;

use crypto_bigint::{
    BoxedUint, ConcatenatingMul, CtLt, Odd,
    modular::{BoxedMontyForm, BoxedMontyParams},
};
use sha2::Digest;
use zeroize::{Zeroize, Zeroizing};

/// The 3072-bit group, whose generator is 5 (RFC 5054, appendix A).
const N_3072: &str = concat!(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD",
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED",
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F",
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B",
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510",
    "15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7",
    "ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C",
    "BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A93AD2CAFFFFFFFFFFFFFFFF",
);
const G_3072: u8 = 5;

/// The bits of a secret exponent (RFC 5054, 2.5.3: at least 256).
const EXPONENT_BITS: u32 = 256;

/// A secret exponent, 32 bytes.
pub(super) type Exponent = [u8; 32];

/// A public value that is zero or not less than N, or has another length than N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Illegal;

/// A group and a hash.
#[derive(Debug)]
pub(super) struct Group<D> {
    n: BoxedUint,
    g: BoxedMontyForm,
    params: BoxedMontyParams,
    hash: PhantomData<D>,
}

impl<D: Digest> Group<D> {
    /// Returns the group of the profile.
    pub(super) fn of_3072_bits() -> Self {
        Self::new(N_3072, G_3072)
    }

    fn new(n: &str, g: u8) -> Self {
        let bits = u32::try_from(n.len() * 4).expect("a group has a few thousand bits");
        let n = BoxedUint::from_be_hex(n, bits).expect("the constant is hexadecimal");
        let odd = Odd::new(n.clone()).expect("the constant is odd");
        let params = BoxedMontyParams::new_vartime(odd);
        let g = BoxedMontyForm::new(BoxedUint::from_be_slice_truncated(&[g], bits), &params);
        Self { n, g, params, hash: PhantomData }
    }

    /// Returns the bytes of a public value.
    pub(super) fn len(&self) -> usize {
        self.bits() as usize / 8
    }

    fn bits(&self) -> u32 {
        self.n.bits_precision()
    }

    /// N.
    pub(super) fn modulus(&self) -> Vec<u8> {
        self.n.to_be_bytes().into()
    }

    /// PAD(g).
    pub(super) fn generator(&self) -> Vec<u8> {
        self.g.retrieve().to_be_bytes().into()
    }

    /// x = H(s | H(I | ":" | P)).
    pub(super) fn x(&self, user: &str, password: &str, salt: &[u8]) -> Zeroizing<BoxedUint> {
        let mut inner =
            D::new().chain_update(user).chain_update(":").chain_update(password).finalize();
        let mut outer = D::new().chain_update(salt).chain_update(&inner).finalize();
        let bits = u32::try_from(outer.len() * 8).expect("a hash has a few hundred bits");
        let x = BoxedUint::from_be_slice_truncated(&outer, bits);
        inner.as_mut_slice().zeroize();
        outer.as_mut_slice().zeroize();
        Zeroizing::new(x)
    }

    /// v = g^x.
    pub(super) fn verifier(&self, x: &BoxedUint) -> Zeroizing<BoxedMontyForm> {
        Zeroizing::new(self.g.pow(x))
    }

    /// Returns A = g^a.
    pub(super) fn client_public(&self, a: &Exponent) -> Vec<u8> {
        self.g.pow(&exponent(a)).retrieve().to_be_bytes().into()
    }

    /// B = k*v + g^b.
    pub(super) fn server_public(&self, b: &Exponent, verifier: &BoxedMontyForm) -> Vec<u8> {
        let value = &(&self.k() * verifier) + &self.g.pow(&exponent(b));
        value.retrieve().to_be_bytes().into()
    }

    /// S = (B - k*g^x) ^ (a + u*x), as PAD(S).
    ///
    /// # Errors
    /// [`Illegal`] if one of the public values is.
    pub(super) fn client_secret(
        &self,
        a: &Exponent,
        a_public: &[u8],
        b_public: &[u8],
        x: &BoxedUint,
    ) -> Result<Zeroizing<Vec<u8>>, Illegal> {
        let base = &self.read(b_public)? - &(&self.k() * &*self.verifier(x));
        let product = Zeroizing::new(self.u(a_public, b_public).concatenating_mul(x));
        let bits = product.bits_precision() + 64;
        let wide = |number: &BoxedUint| Zeroizing::new(resized(number, bits));
        let sum = Zeroizing::new(wide(&exponent(a)).wrapping_add(&*wide(&product)));
        let secret = Zeroizing::new(base.pow(&sum));
        Ok(Zeroizing::new(Zeroizing::new(secret.retrieve()).to_be_bytes().into()))
    }

    /// S = (A * v^u) ^ b, as PAD(S).
    ///
    /// # Errors
    /// [`Illegal`] if one of the public values is.
    pub(super) fn server_secret(
        &self,
        b: &Exponent,
        a_public: &[u8],
        b_public: &[u8],
        verifier: &BoxedMontyForm,
    ) -> Result<Zeroizing<Vec<u8>>, Illegal> {
        let u = self.u(a_public, b_public);
        let base = Zeroizing::new(&self.read(a_public)? * &verifier.pow(&u));
        let secret = Zeroizing::new(base.pow(&exponent(b)));
        Ok(Zeroizing::new(Zeroizing::new(secret.retrieve()).to_be_bytes().into()))
    }

    /// k = H(N | PAD(g)).
    fn k(&self) -> BoxedMontyForm {
        let k = D::new().chain_update(self.modulus()).chain_update(self.generator()).finalize();
        BoxedMontyForm::new(BoxedUint::from_be_slice_truncated(&k, self.bits()), &self.params)
    }

    /// u = H(PAD(A) | PAD(B)); both have their full length.
    fn u(&self, a_public: &[u8], b_public: &[u8]) -> BoxedUint {
        let u = D::new().chain_update(a_public).chain_update(b_public).finalize();
        BoxedUint::from_be_slice_vartime(&u)
    }

    /// Returns a public value. RFC 5054 requires that it is not 0 modulo N; honest ones are also less than N.
    fn read(&self, bytes: &[u8]) -> Result<BoxedMontyForm, Illegal> {
        if bytes.len() != self.len() {
            return Err(Illegal);
        }
        let value = BoxedUint::from_be_slice_truncated(bytes, self.bits());
        let legal = bool::from(value.is_nonzero()) && bool::from(value.ct_lt(&self.n));
        legal.then(|| BoxedMontyForm::new(value, &self.params)).ok_or(Illegal)
    }
}

fn exponent(bytes: &Exponent) -> Zeroizing<BoxedUint> {
    Zeroizing::new(BoxedUint::from_be_slice_truncated(bytes, EXPONENT_BITS))
}

fn resized(number: &BoxedUint, bits: u32) -> BoxedUint {
    use crypto_bigint::Resize;
    number.resize(bits)
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXUPPER;
    use sha1::Sha1;
    use sha2::Sha256;

    use super::*;

    /// The vectors of RFC 5054, appendix B, are of the 1024-bit group and SHA-1.
    const N_1024: &str = concat!(
        "EEAF0AB9ADB38DD69C33F80AFA8FC5E86072618775FF3C0B9EA2314C9C256576D674DF7496EA81D3383B4813D692C6E0",
        "E0D5D8E250B98BE48E495C1D6089DAD15DC7D7B46154D6B6CE8EF4AD69B15D4982559B297BCF1885C529F566660E57EC",
        "68EDBC3C05726CC02FD4CBF4976EAA9AFD5138FE8376435B9FC61D2FC0EB06E3",
    );

    fn hex(text: &str) -> Vec<u8> {
        let digits: String = text.split_whitespace().collect();
        HEXUPPER.decode(digits.as_bytes()).unwrap()
    }

    fn exponent(text: &str) -> Exponent {
        hex(text).try_into().unwrap()
    }

    #[test]
    fn the_vectors_of_rfc_5054_come_out() {
        let group = Group::<Sha1>::new(N_1024, 2);
        let salt = hex("BEB25379 D1A8581E B5A72767 3A2441EE");
        let k = group.k().retrieve().to_be_bytes();
        assert_eq!(k[128 - 20..], hex("7556AA04 5AEF2CDD 07ABAF0F 665C3E81 8913186F"));
        let x = group.x("alice", "password123", &salt);
        assert_eq!(x.to_be_bytes()[4..], hex("94B7555A ABE9127C C58CCF49 93DB6CF8 4D16C124"));
        let v = group.verifier(&x);
        assert_eq!(
            v.retrieve().to_be_bytes()[..],
            hex("7E273DE8 696FFC4F 4E337D05 B4B375BE B0DDE156 9E8FA00A 9886D812 9BADA1F1 822223CA
                 1A605B53 0E379BA4 729FDC59 F105B478 7E5186F5 C671085A 1447B52A 48CF1970 B4FB6F84
                 00BBF4CE BFBB1681 52E08AB5 EA53D15C 1AFF87B2 B9DA6E04 E058AD51 CC72BFC9 033B564E
                 26480D78 E955A5E2 9E7AB245 DB2BE315 E2099AFB")
        );
        let a = exponent("60975527 035CF2AD 1989806F 0407210B C81EDC04 E2762A56 AFD529DD DA2D4393");
        let b = exponent("E487CB59 D31AC550 471E81F0 0F6928E0 1DDA08E9 74A004F4 9E61F5D1 05284D20");
        let a_public = group.client_public(&a);
        assert_eq!(
            a_public,
            hex("61D5E490 F6F1B795 47B0704C 436F523D D0E560F0 C64115BB 72557EC4 4352E890 3211C046
                 92272D8B 2D1A5358 A2CF1B6E 0BFCF99F 921530EC 8E393561 79EAE45E 42BA92AE ACED8251
                 71E1E8B9 AF6D9C03 E1327F44 BE087EF0 6530E69F 66615261 EEF54073 CA11CF58 58F0EDFD
                 FE15EFEA B349EF5D 76988A36 72FAC47B 0769447B")
        );
        let b_public = group.server_public(&b, &v);
        assert_eq!(
            b_public,
            hex("BD0C6151 2C692C0C B6D041FA 01BB152D 4916A1E7 7AF46AE1 05393011 BAF38964 DC46A067
                 0DD125B9 5A981652 236F99D9 B681CBF8 7837EC99 6C6DA044 53728610 D0C6DDB5 8B318885
                 D7D82C7F 8DEB75CE 7BD4FBAA 37089E6F 9C6059F3 88838E7A 00030B33 1EB76840 910440B1
                 B27AAEAE EB4012B7 D7665238 A8E3FB00 4B117B58")
        );
        let secret =
            hex("B0DC82BA BCF30674 AE450C02 87745E79 90A3381F 63B387AA F271A10D 233861E3 59B48220
             F7C4693C 9AE12B0A 6F67809F 0876E2D0 13800D6C 41BB59B6 D5979B5C 00A172B4 A2A5903A
             0BDCAF8A 709585EB 2AFAFA8F 3499B200 210DCC1F 10EB3394 3CD67FC8 8A2F39A4 BE5BEC4E
             C0A3212D C346D7E4 74B29EDE 8A469FFE CA686E5A");
        assert_eq!(*group.client_secret(&a, &a_public, &b_public, &x).unwrap(), secret);
        assert_eq!(*group.server_secret(&b, &a_public, &b_public, &v).unwrap(), secret);
    }

    #[test]
    fn zero_and_what_is_not_less_than_n_is_no_public_value() {
        let group = Group::<Sha256>::of_3072_bits();
        assert_eq!(group.len(), 384);
        let n = group.modulus();
        let mut largest = n.clone();
        *largest.last_mut().unwrap() = 0xFE;
        let x = group.x("a@example.org", "password", b"salt");
        let honest = group.client_public(&[7; 32]);
        for bad in [vec![0; 384], n, vec![0xFF; 384], honest[1..].to_vec(), vec![]] {
            let client = group.client_secret(&[9; 32], &honest, &bad, &x);
            assert_eq!(client.err(), Some(Illegal));
            let server = group.server_secret(&[9; 32], &bad, &honest, &group.verifier(&x));
            assert_eq!(server.err(), Some(Illegal));
        }
        assert!(group.read(&largest).is_ok(), "N - 1 is the largest");
    }
}
