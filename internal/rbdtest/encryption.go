package rbdtest

import librbd "github.com/ceph/go-ceph/rbd"

// Luks is a format of encryption by librbd itself, with its passphrase.
type Luks struct {
	Version    int // 1 or 2
	Passphrase string
}

func (l Luks) options() librbd.EncryptionOptions {
	if l.Version == 1 {
		return librbd.EncryptionOptionsLUKS1{Alg: librbd.EncryptionAlgorithmAES128, Passphrase: []byte(l.Passphrase)}
	}
	return librbd.EncryptionOptionsLUKS2{Alg: librbd.EncryptionAlgorithmAES128, Passphrase: []byte(l.Passphrase)}
}

// Encrypt writes the header of the encryption. The image stays open as it is stored.
func (i *Image) Encrypt(l Luks) error {
	if err := i.EncryptionFormat(l.options()); err != nil {
		return err
	}
	return i.Reopen()
}

// Decrypt lets all that is read and written from now on, until the image is opened again, be what is encrypted.
func (i *Image) Decrypt(l Luks) error { return i.EncryptionLoad(l.options()) }

// Decrypt lets all that is read from now on be what is encrypted.
func (s *Snapshot) Decrypt(l Luks) error { return s.image.EncryptionLoad(l.options()) }
