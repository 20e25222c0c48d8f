package app

import (
	"crypto/tls"
	"fmt"
	"sync/atomic"
)

// certificate is the one of the SMTP listeners; it can be read again while they run.
type certificate struct {
	certFile, keyFile string
	current           atomic.Pointer[tls.Certificate]
}

func loadCertificate(certFile, keyFile string) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile}
	return c, c.reload()
}

// reload keeps the certificate in use when the files are not a good pair.
func (c *certificate) reload() error {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("load certificate %s: %w", c.certFile, err)
	}
	c.current.Store(&pair)
	return nil
}

func (c *certificate) get() *tls.Certificate { return c.current.Load() }
