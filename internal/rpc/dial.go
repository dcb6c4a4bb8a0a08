package rpc

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// reconnectDelay is the longest pause between attempts to connect.
const reconnectDelay = time.Second

// DialOptions returns what every connection to a Headwater server is made with. No proxy is taken: the variables that name
// one are meant for the way out of the cluster. Errors of calls are in this program's words.
func DialOptions() []grpc.DialOption {
	return append(dialOptions(Version), grpc.WithNoProxy())
}

// ProxyDialOptions is DialOptions for who wants the proxy that HTTPS_PROXY names, NO_PROXY apart.
func ProxyDialOptions() []grpc.DialOption { return dialOptions(Version) }

// Proxy returns the proxy that ProxyDialOptions take to a host:port, without what it may hold of passwords; "" for none.
func Proxy(hostport string) string {
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: hostport}})
	if err != nil || proxy == nil {
		return ""
	}
	return proxy.Host
}

func dialOptions(version string) []grpc.DialOption {
	retry := backoff.DefaultConfig
	retry.BaseDelay, retry.MaxDelay = reconnectDelay/10, reconnectDelay
	return []grpc.DialOption{
		(*Security)(nil).Dial(Expectation{}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: connectTimeout}),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(MessageCodec{}), grpc.MaxCallRecvMsgSize(maxReceiveBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			var header metadata.MD
			if err := invoke(outgoing(ctx, version), method, req, reply, cc, append(opts, grpc.Header(&header))...); err != nil {
				return inOwnWords(err)
			}
			return checkServer(header, method)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := open(outgoing(ctx, version), desc, cc, method, opts...)
			if err != nil {
				return nil, inOwnWords(err)
			}
			return clientStream{s}, nil
		}),
	}
}

// checkServer refuses the answer of a server that speaks too old a minor version for the method's service. Other versions are for
// CheckHeader, which names the server.
func checkServer(header metadata.MD, method string) error {
	for _, v := range header.Get(MetadataKey) {
		if check(v) == nil {
			return checkService(v, method)
		}
	}
	return nil
}

// clientStream is a stream whose errors are in this program's words.
type clientStream struct{ grpc.ClientStream }

func (s clientStream) SendMsg(m any) error { return inOwnWords(s.ClientStream.SendMsg(m)) }
func (s clientStream) RecvMsg(m any) error { return inOwnWords(s.ClientStream.RecvMsg(m)) }

// gRPC's words, of its version that go.mod names.
var (
	dialFailed = regexp.MustCompile(`(?:connection error: )+desc = "transport: (?:E|e)rror while dialing: ([^"]*)"`)
	tooLarge   = regexp.MustCompile(`(?i)(?:trying to send|received) message (?:after decompression )?larger than max \((\d+) vs\. (\d+)\)`)
	handshake  = regexp.MustCompile(`(?:connection error: )+desc = "transport: authentication handshake failed: ((?:[^"\\]|\\.)*)"`)
	noPreface  = regexp.MustCompile(`(?:connection error: )+desc = "error reading server preface: ([^"]*)"`)
	gaveUp     = regexp.MustCompile(`use of closed network connection|context (?:deadline exceeded|canceled)`)
	hungUp     = regexp.MustCompile(`EOF|connection reset|broken pipe`)
)

// unanswered is said of a peer that was there and does not answer.
var unanswered = fmt.Sprintf("it did not answer for %v: it hangs, or the network to it is cut", keepaliveTime+keepaliveTimeout)

// mute begins what is said of a peer whose system accepts connections for it.
const mute = "it accepts connections and says nothing"

// Mute is the error of a peer that accepted a connection and did not say in time what it speaks.
func Mute() error {
	return status.Errorf(codes.Unavailable, "%s within %v: it hangs", mute, connectTimeout)
}

// withoutPreface says why a peer's first bytes are not those of HTTP/2: none came in time, the peer closed the connection, or it
// speaks another protocol.
func withoutPreface(why string) string {
	switch {
	case gaveUp.MatchString(why):
		return fmt.Sprintf("%s within %v: it hangs, or it is no Headwater server", mute, connectTimeout)
	case hungUp.MatchString(why):
		return "it closes the connection at once: it is stopping, it speaks TLS, or it is no Headwater server"
	}
	return "what answers speaks another protocol: it is no Headwater server"
}

// IsMute tells whether a call failed because its peer accepts connections and says nothing. Another attempt takes as long
// and ends alike.
func IsMute(err error) bool {
	return status.Code(err) == codes.Unavailable && strings.Contains(status.Convert(err).Message(), mute)
}

// inOwnWords says the failures of connections and the bounds of messages as people need them. Codes and details stay, but
// for a message that is too large: it will not fit later either, so the request is at fault and no want of room.
func inOwnWords(err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok || s.Code() != codes.Unavailable && s.Code() != codes.ResourceExhausted && s.Code() != codes.DeadlineExceeded {
		return err
	}
	message := s.Message()
	said := dialFailed.ReplaceAllString(message, "$1")
	if m := handshake.FindStringSubmatch(said); m != nil {
		if why, err := strconv.Unquote(`"` + m[1] + `"`); err == nil {
			said = why
		}
	}
	said, distrusted := strings.CutPrefix(said, notTrusted)
	said = tooLarge.ReplaceAllString(said, "a message of $1 bytes is larger than the $2 bytes that are allowed")
	if m := noPreface.FindStringSubmatch(said); m != nil {
		said = withoutPreface(m[1])
	}
	said = strings.TrimPrefix(said, "grpc: ")
	if strings.Contains(said, "keepalive ping failed") {
		said = unanswered
	}
	if said == message {
		return err
	}
	p := s.Proto()
	p.Message = said
	switch {
	case tooLarge.MatchString(message):
		p.Code = int32(codes.InvalidArgument)
	case distrusted:
		p.Code = int32(codes.Unauthenticated)
	}
	return status.ErrorProto(p)
}
