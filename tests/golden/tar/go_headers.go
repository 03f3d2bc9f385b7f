// What Go's archive/tar writes for the entries of ../test_golden_tar.py.
package main

import (
	"archive/tar"
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

type In struct {
	Name     string            `json:"name"` // hex
	Typeflag string            `json:"typeflag"`
	Mode     int64             `json:"mode"`
	Uid      int               `json:"uid"`
	Gid      int               `json:"gid"`
	Size     int64             `json:"size"`
	Sec      int64             `json:"sec"`
	Nsec     int64             `json:"nsec"`
	Link     string            `json:"link"` // hex
	Major    int64             `json:"major"`
	Minor    int64             `json:"minor"`
	Xattrs   map[string]string `json:"xattrs"` // hex: hex
}

func un(s string) string {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func main() {
	var ins map[string]*In
	if err := json.NewDecoder(os.Stdin).Decode(&ins); err != nil {
		panic(err)
	}
	out := map[string]string{}
	for id, in := range ins {
		if in == nil {
			continue
		}
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		h := &tar.Header{Name: un(in.Name), Typeflag: in.Typeflag[0], Mode: in.Mode, Uid: in.Uid, Gid: in.Gid,
			Size: in.Size, ModTime: time.Unix(in.Sec, in.Nsec), Linkname: un(in.Link), Devmajor: in.Major, Devminor: in.Minor}
		if len(in.Xattrs) > 0 {
			h.PAXRecords = map[string]string{}
			for k, v := range in.Xattrs {
				h.PAXRecords["SCHILY.xattr."+un(k)] = un(v)
			}
		}
		if in.Nsec != 0 {
			h.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		var small bytes.Buffer
		z := zlib.NewWriter(&small)
		z.Write(buf.Bytes())
		z.Close()
		out[id] = base64.StdEncoding.EncodeToString(small.Bytes())
	}
	enc, _ := json.MarshalIndent(out, "", " ")
	fmt.Println(string(enc))
}
