package capability

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"time"
)

// keyName is the common name of the certificate by which a client proves a key. It proves nothing itself: it tells such a certificate
// from one of a foreign authority.
const keyName = "headwater capability"

// NewKey makes a key for a client to show capabilities with, in a certificate that it signs itself.
func NewKey() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: keyName},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<37, 0), // what ends is the capability
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}

// IsKey tells whether what a client shows is such a certificate.
func IsKey(chain []*x509.Certificate) bool {
	return len(chain) == 1 && chain[0].Subject.CommonName == keyName && len(chain[0].URIs) == 0
}
